"""Chat. The model's words are scripted, so that stopping, failing and hostile text can be had on demand."""

import threading
import time
import types

import pytest
from sloth_nb_widgets import Chat
from sloth_nb_widgets.conversation import Conversation, Turn

from sloth_nb.errors import ModelError


class Model:
    """Says what it is told to; ``disable_adapter`` is how a PEFT model is known."""

    config = types.SimpleNamespace(_name_or_path="models/SmolLM2-135M-Instruct")

    def disable_adapter(self):
        raise AssertionError("inference.stream switches the adapter, not the chat")


class Bare:
    config = types.SimpleNamespace()


@pytest.fixture
def script(monkeypatch):
    """script.say(pieces, pause): what ``inference.stream`` yields next; script.calls: what it was asked."""
    said = types.SimpleNamespace(pieces=["I am ", "Ada", "."], pause=0.0, calls=[], fail=None)

    def stream(model, tokenizer, messages, *, stop=None, adapter=True, **options):
        said.calls.append({"messages": messages, "adapter": adapter, **options})
        for piece in said.pieces:
            if stop is not None and stop.is_set():
                return
            if said.fail:
                raise said.fail
            time.sleep(said.pause)
            yield piece if adapter else piece.upper()

    module = types.ModuleType("sloth_nb.inference")
    module.stream = stream
    monkeypatch.setitem(__import__("sys").modules, "sloth_nb.inference", module)
    return said


@pytest.fixture
def chat(front_end, script):
    panel = Chat(Model(), "tokenizer", compare=False)
    panel._ipython_display_()
    return panel


def type_and_enter(front_end, box, text):
    front_end.update(box, value=text)
    front_end.custom(box, "submit")


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def last_turn(chat):
    return chat._turns.children[-1].value


def test_ask_returns_the_answer_and_shows_the_turn(front_end, chat, script):
    assert chat.ask("Who are you?") == "I am Ada."
    assert "Who are you?" in last_turn(chat) and "I am Ada." in last_turn(chat)
    assert "▍" not in last_turn(chat), "nothing is being written any more"
    snapshot = list(front_end.displays.values())[1][-1]
    assert "I am Ada." in snapshot["text/html"]
    assert snapshot["text/plain"] == "You: Who are you?\nModel: I am Ada."


def test_earlier_turns_are_remembered(chat, script):
    chat.system = "Be brief."
    chat.ask("Who are you?")
    script.pieces = ["Fine."]
    chat.ask("How are you?")
    assert script.calls[-1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "I am Ada."},
        {"role": "user", "content": "How are you?"},
    ]
    assert chat.history[-1] == {"role": "assistant", "content": "Fine."}


def test_settings_reach_the_model(front_end, find, chat, script):
    front_end.update(find(chat, "Temperature"), value=0.0)
    front_end.update(find(chat, "Top-p"), value=0.5)
    front_end.update(find(chat, "Length"), value=32)
    chat.ask("Hi")
    assert {"temperature": 0.0, "top_p": 0.5, "max_new_tokens": 32}.items() <= script.calls[-1].items()


def test_both_sides_answer_and_each_remembers_its_own_words(front_end, script):
    chat = Chat(Model(), "tokenizer")
    chat._ipython_display_()
    assert chat.compare, "there is an adapter to compare with"
    assert chat.ask("Who are you?") == "I am Ada."
    assert [call["adapter"] for call in script.calls] == [True, False]
    assert '<th scope="col">Tuned</th><th scope="col">Base</th>' in last_turn(chat)
    assert "I AM ADA." in last_turn(chat)
    chat.ask("Again?")
    assert script.calls[-1]["messages"][1]["content"] == "I AM ADA."
    assert script.calls[-2]["messages"][1]["content"] == "I am Ada."
    assert "Tuned: I am Ada.\nBase: I AM ADA." in str(chat)


def test_a_model_without_adapter_offers_no_comparison(front_end, script):
    chat = Chat(Bare(), "tokenizer")
    chat._ipython_display_()
    assert not chat.compare
    chat.ask("Hi")
    assert len(script.calls) == 1
    with pytest.raises(ModelError, match="needs a model with an adapter"):
        Chat(Bare(), "tokenizer", compare=True)


def test_enter_sends_and_the_answer_grows_while_it_is_written(front_end, find, chat, script):
    script.pieces, script.pause = ["word "] * 20, 0.02
    box = find(chat, "Message")
    type_and_enter(front_end, box, "Go")
    wait_until(lambda: "word" in last_turn(chat))
    assert "▍" in last_turn(chat) and box.value == ""
    assert find(chat, "Send").disabled and not find(chat, "Stop").disabled
    wait_until(lambda: not chat._busy.locked() and "▍" not in last_turn(chat))
    assert last_turn(chat).count("word") == 20
    assert not find(chat, "Send").disabled and find(chat, "Stop").disabled


def test_stop_ends_the_answer_and_keeps_what_there_is(front_end, find, chat, script):
    script.pieces, script.pause = ["word "] * 500, 0.01
    type_and_enter(front_end, find(chat, "Message"), "Go")
    wait_until(lambda: "word" in last_turn(chat))
    front_end.click(find(chat, "Stop"))
    wait_until(lambda: not chat._busy.locked())
    wait_until(lambda: "Stopped." in last_turn(chat))
    assert 0 < last_turn(chat).count("word") < 400


def test_a_second_question_waits_for_the_first_answer(front_end, find, chat, script):
    script.pause = 0.1
    type_and_enter(front_end, find(chat, "Message"), "One")
    type_and_enter(front_end, find(chat, "Message"), "Two")
    assert len(chat.conversation.turns) == 1
    assert "press Stop first" in chat._status_line.value
    assert find(chat, "Message").value == "Two", "what was typed is not lost"
    with pytest.raises(ModelError, match="still answering"):
        chat.ask("Three")
    wait_until(lambda: not chat._busy.locked())


def test_updates_are_at_most_fifteen_a_second(front_end, chat, script):
    script.pieces, script.pause = ["word "] * 200, 0.003
    before, begun = len(front_end.messages), time.monotonic()
    chat.ask("Go")
    took = time.monotonic() - begun
    turn = [m for m in front_end.messages[before:] if m["comm"] == chat._turns.children[-1].comm.comm_id]
    assert 3 <= len(turn) <= 15 * took + 4


def test_hostile_words_stay_text(front_end, find, chat, script):
    script.pieces = ["<scr", "ipt>alert(1)</script>", '<img src=x onerror="alert(2)">', "</td></table><b>x"]
    chat.ask('<iframe src="javascript:alert(3)">')
    for html in (last_turn(chat), list(front_end.displays.values())[1][-1]["text/html"]):
        assert "<script" not in html and "<img" not in html and "<iframe" not in html and "<b>x" not in html
    assert chat.history[-1]["content"].startswith("<script>"), "what code gets is what the model said"


def test_an_error_is_shown_where_the_person_looks(front_end, find, chat, script):
    script.fail = ModelError("The tokenizer has no chat template.")
    type_and_enter(front_end, find(chat, "Message"), "Go")
    wait_until(lambda: "no chat template" in last_turn(chat) and not chat._busy.locked())
    assert 'role="alert"' in chat._status_line.value
    with pytest.raises(ModelError, match="no chat template"):
        chat.ask("Go")
    script.fail = None
    assert chat.ask("Now?") == "I am Ada."
    assert [m["content"] for m in script.calls[-1]["messages"]] == ["Now?"], "a failed turn is no example"


def test_clear_forgets(front_end, find, chat, script):
    chat.ask("One")
    front_end.click(find(chat, "Clear"))
    assert chat.history == [] and "Nothing has been said" in last_turn(chat)
    chat.ask("Two")
    assert len(script.calls[-1]["messages"]) == 1
    assert len(chat._turns.children) == 1


def test_without_a_front_end_the_transcript_is_kept_all_the_same(front_end, script, monkeypatch):
    monkeypatch.setenv("SLOTH_NB_HOST", "headless")
    chat = Chat(Model(), "tokenizer", compare=False)
    assert chat.ask("Who?") == "I am Ada."
    chat._ipython_display_()
    chat.ask("And now?")
    (transcript,) = front_end.displays.values()
    assert "Who?" in transcript[0]["text/html"] and "And now?" in transcript[-1]["text/html"]
    assert not front_end.messages


def test_in_a_script_ask_returns_and_nothing_else(script, monkeypatch, capsys):
    monkeypatch.delenv("SLOTH_NB_HOST", raising=False)
    assert Chat(Model(), "tokenizer", compare=False).ask("Who?") == "I am Ada."
    assert capsys.readouterr().out == ""


def test_an_interrupt_keeps_what_there_is_and_the_chat_goes_on(chat, script):
    script.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        chat.ask("Go")
    assert "KeyboardInterrupt" in last_turn(chat)
    script.fail = None
    assert chat.ask("Go") == "I am Ada."


def test_every_control_can_be_reached_by_name(front_end, find, chat):
    for name in ("Message", "Send", "Stop", "Clear", "System prompt", "Temperature", "Top-p", "Length"):
        assert find(chat, name)


def test_a_misspelt_setting_is_refused(script):
    with pytest.raises(TypeError, match="Did you mean 'temperature'"):
        Chat(Model(), "tokenizer", temprature=1.0)


def test_line_ends_survive_without_style_sheets():
    turn = Turn("a\nb", {"tuned": "1\n2"})
    assert "a<br>b" in turn.html() and "1<br>2" in turn.html()
    assert str(Conversation()) == "Nothing has been said yet."


def test_threads_end_with_the_answer(chat, script):
    before = threading.active_count()
    chat.ask("Go")
    wait_until(lambda: threading.active_count() <= before)
