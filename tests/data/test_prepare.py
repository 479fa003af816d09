"""prepare: what is trained is exactly what the assistant says, and every row is accounted for."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

sys.path.insert(0, str(Path(__file__).parent))
import makers
import shapes

from sloth_nb.data import example, prepare
from sloth_nb.errors import DatasetError, TemplateError


def trained(tokenizer: Any, row: dict[str, list[int]]) -> str:
    return tokenizer.decode([i for i in row["labels"] if i != -100])


def chat(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]}


def test_the_quickstart_trains_on_the_answers_and_nothing_else(shared_tokenizer: Any):
    data = example("quickstart", split="train")
    prepared = prepare(data, shared_tokenizer)
    assert len(prepared.dataset) == len(data) == prepared.report.kept
    for source, row in zip(data, prepared.dataset, strict=True):
        assert trained(shared_tokenizer, row) == source["messages"][-1]["content"] + "<|im_end|>"


def test_ids_are_the_tokenizer_s_own(shared_tokenizer: Any):
    row = chat("Hi!", "Yo  there", "1+1=\n", "2")
    ids = shared_tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)
    assert prepare([row], shared_tokenizer).dataset[0]["input_ids"] == ids


def test_every_turn_of_a_conversation_is_trained_or_only_the_last(shared_tokenizer: Any):
    row = chat("a", "first answer", "b", "second answer")
    both = prepare([row], shared_tokenizer).dataset[0]
    last = prepare([row], shared_tokenizer, train_on="last").dataset[0]
    everything = prepare([row], shared_tokenizer, train_on="all").dataset[0]
    assert trained(shared_tokenizer, both) == "first answer<|im_end|>second answer<|im_end|>"
    assert trained(shared_tokenizer, last) == "second answer<|im_end|>"
    assert everything["labels"] == everything["input_ids"]


def test_a_token_across_the_edge_is_split_as_generation_would(shared_tokenizer: Any):
    prepared = prepare([chat("hi", "\n\n  indented")], shared_tokenizer)
    assert trained(shared_tokenizer, prepared.dataset[0]) == "\n\n  indented<|im_end|>"
    assert prepared.report.resplit == 1


def test_an_end_of_turn_that_swallows_the_line_break_after_it_splits_no_token(tokenizer: Any):
    tokenizer.add_tokens([AddedToken("<|done|>", rstrip=True)], special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|done|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    row = chat("a", "first\n", "b", "second")
    prepared = prepare([row], tokenizer)
    (made,) = prepared.dataset
    assert made["input_ids"] == tokenizer.apply_chat_template(row["messages"], return_dict=False)
    assert trained(tokenizer, made) == "first\n<|done|>second<|done|>"
    assert prepared.report.resplit == 0


def test_markers_in_the_template_are_followed(tokenizer: Any):
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}:"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    prepared = prepare([chat("hi", "yo", "so", "ho")], tokenizer)
    assert trained(tokenizer, prepared.dataset[0]) == "yo!ho!"
    assert "generation markers" in str(prepared.report)


def test_text_gets_one_bos_and_one_eos_whatever_it_brings(tokenizer: Any):
    from tokenizers.processors import TemplateProcessing

    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    rows = [{"text": text} for text in ("plain", f"{bos}plain", f"plain{eos}", f"{bos}plain{eos}")]
    ids = {tuple(row["input_ids"]) for row in prepare(rows, tokenizer).dataset}
    assert len(ids) == 1
    (only,) = ids
    assert only[0] == tokenizer.bos_token_id and only.count(tokenizer.bos_token_id) == 1
    assert only[-1] == tokenizer.eos_token_id and only.count(tokenizer.eos_token_id) == 1


def test_long_rows_are_cut_and_counted_and_rows_cut_empty_are_left_out(shared_tokenizer: Any):
    rows = [chat("q", "word " * 50), chat("word " * 50, "a"), chat("q", "a")]
    report = prepare(rows, shared_tokenizer, max_length=48).report
    assert (report.rows, report.kept, report.truncated, report.dropped) == (3, 2, 2, {"cut": 1})
    assert "1 rows: the trained part lies beyond max_length" in str(report)


def test_rows_without_an_answer_are_counted(shared_tokenizer: Any):
    prepared = prepare([chat("only a question"), chat("q", "a")], shared_tokenizer)
    assert prepared.report.dropped == {"masked": 1} and prepared.report.kept == 1


def test_it_refuses_when_every_row_is_masked_or_cut(shared_tokenizer: Any):
    with pytest.raises(DatasetError, match=r"(?s)prompt_only.*Nobody answers"):
        prepare([chat("q"), chat("q2")], shared_tokenizer)
    with pytest.raises(DatasetError, match=r"Not one of the 2 rows .* 2 nothing to train on"):
        prepare([chat("q"), chat("q2")], shared_tokenizer, mapping={"messages": "messages"})
    with pytest.raises(DatasetError, match=r"max_length is 8; the longest row has \d\d tokens"):
        prepare([chat("q " * 20, "a")], shared_tokenizer, max_length=8)


def test_a_row_that_cant_be_read_is_named_or_counted(shared_tokenizer: Any):
    rows = [chat(*"qaqaqa"), {"messages": [{"role": "narrator", "content": "x"}]}]
    with pytest.raises(DatasetError, match=r"Row 2: turn 1 is spoken by 'narrator'"):
        prepare(rows, shared_tokenizer)
    assert prepare(rows, shared_tokenizer, on_error="skip").report.dropped == {"broken": 1}


def test_a_row_the_template_refuses_is_named_with_the_template_s_words(tokenizer: Any):
    tokenizer.chat_template = "{{ raise_exception('no ' + messages[0].content) }}"
    with pytest.raises(TemplateError, match=r"Row 1: the chat template refuses the conversation \(no q\)"):
        prepare([chat("q", "a")], tokenizer)


def test_a_template_that_ends_no_turn_is_noted_in_the_report(tokenizer: Any):
    assert "won't learn to stop" not in str(prepare([chat("q", "a")], tokenizer).report)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    report = prepare([chat("q", "a")], tokenizer).report
    (note,) = [text for label, text in report.lines() if label == "note"]
    assert note.startswith("no special token ends the assistant's turn: the model won't learn to stop.")


def test_a_tokenizer_without_a_template_says_what_to_do(tokenizer: Any):
    tokenizer.chat_template = None
    with pytest.raises(TemplateError, match=r"has no chat template.*get_chat_template"):
        prepare([chat("q", "a")], tokenizer)


def test_a_mapping_by_hand_is_followed_and_checked(shared_tokenizer: Any):
    rows = [{"frage": "q", "antwort": "a"}]
    prepared = prepare(rows, shared_tokenizer, mapping={"user": "frage", "assistant": "antwort"})
    assert trained(shared_tokenizer, prepared.dataset[0]) == "a<|im_end|>"
    with pytest.raises(DatasetError, match=r"no column 'frag'. Columns: 'frage', 'antwort'"):
        prepare(rows, shared_tokenizer, mapping={"user": "frag", "assistant": "antwort"})
    for mapping, said in (
        ("antwort", "mapping='antwort' is a str; it says which column"),
        (["frage"], "is a list; it says"),
        ({"messages": 3}, r"mapping\['messages'\] is 3, not a column's name"),
        ({"text": "frage", "roles": "x"}, r"mapping\[\"roles\"\] is 'x'; it says who"),
    ):
        with pytest.raises(DatasetError, match=said):
            prepare(rows, shared_tokenizer, mapping=mapping)
    with pytest.raises(DatasetError, match=r"no part 'asistant'"):
        prepare(rows, shared_tokenizer, mapping={"user": "frage", "asistant": "antwort"})


def test_packed_rows_hold_the_same_sequences_and_predict_nothing_across(shared_tokenizer: Any):
    data = example("quickstart", split="train")
    plain = prepare(data, shared_tokenizer).dataset
    prepared = prepare(data, shared_tokenizer, packing=True, max_length=256)
    sequences = []
    for row in prepared.dataset:
        at = 0
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) <= 256
        for n in row["seq_lengths"]:
            sequences.append((tuple(row["input_ids"][at : at + n]), tuple(row["labels"][at : at + n])))
            assert row["labels"][at] == -100
            at += n
    expected = [(tuple(row["input_ids"]), (-100, *row["labels"][1:])) for row in plain]
    assert sorted(sequences) == sorted(expected)
    assert prepared.report.fill > 0.85


def test_what_a_template_leaves_out_is_counted(tokenizer: Any):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    row = chat("q", "a")
    silent = {"messages": [{"role": "system", "content": "be brief"}, *row["messages"]]}
    report = prepare([row, silent, silent], tokenizer).report
    assert report.unsaid == {"a system message": 2}
    assert "2 rows have a system message: the template leaves it out" in str(report)


def test_a_prompt_is_continued_where_there_is_no_template(tokenizer: Any):
    tokenizer.chat_template = None
    prepared = prepare([{"prompt": "2+2=", "completion": "4"}], tokenizer)
    row = prepared.dataset[0]
    assert tokenizer.decode(row["input_ids"]) == "2+2=4" + tokenizer.eos_token
    assert trained(tokenizer, row) == "4" + tokenizer.eos_token
    assert "no template" in prepared.report.mask


def test_long_texts_are_cut_or_parted_as_asked(shared_tokenizer: Any):
    rows = [{"text": "sloth " * 100}, {"text": "short"}]
    cut = prepare(rows, shared_tokenizer, max_length=32)
    parted = prepare(rows, shared_tokenizer, max_length=32, long_text="part")
    assert (cut.report.kept, cut.report.truncated) == (2, 1)
    assert (parted.report.rows, parted.report.truncated, parted.report.parted) == (2, 0, 1)
    pieces = [i for row in parted.dataset for i in row["input_ids"]]
    assert shared_tokenizer.decode(pieces).count("sloth") == 100
    with pytest.raises(DatasetError, match="give one"):
        prepare(rows, shared_tokenizer, max_length=None, long_text="part")


def test_token_ids_pass_through_with_their_labels(shared_tokenizer: Any):
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]}]
    row = prepare(rows, shared_tokenizer, max_length=3).dataset[0]
    assert row == {"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}


@pytest.mark.parametrize("packing", [False, True])
def test_a_stream_gives_the_same_rows_as_a_list_each_time_it_is_read(shared_tokenizer: Any, packing: bool):
    data = example("quickstart", split="train")
    whole = prepare(data, shared_tokenizer, packing=packing, max_length=256)
    stream = prepare(data.to_iterable_dataset(), shared_tokenizer, packing=packing, max_length=256)
    for _ in range(2):
        assert list(stream.dataset) == whole.dataset.to_list()
        assert str(stream.report).splitlines()[1:] == str(whole.report).splitlines()[1:]


def test_a_processor_s_tokenizer_is_found(shared_tokenizer: Any):
    from types import SimpleNamespace

    processor = SimpleNamespace(tokenizer=shared_tokenizer)
    assert prepare([chat("q", "a")], processor).dataset.to_list() == (
        prepare([chat("q", "a")], shared_tokenizer).dataset.to_list()
    )


def test_data_for_another_trainer_is_refused_with_its_name(shared_tokenizer: Any):
    with pytest.raises(DatasetError, match=r"(?s)preference.*DPOTrainer"):
        prepare([{"prompt": "q", "chosen": "a", "rejected": "b"}], shared_tokenizer)


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"user": "prompt", "assistant": "chosen"}),
        ({"chosen": "q a", "rejected": "q b"}, {"text": "chosen"}),
        (
            {"chosen": chat("q", "a")["messages"], "rejected": chat("q", "b")["messages"]},
            {"messages": "chosen"},
        ),
    ],
)
def test_the_way_to_train_on_chosen_answers_that_is_told_works(
    shared_tokenizer: Any, row: dict, mapping: dict
):
    with pytest.raises(DatasetError) as caught:
        prepare([row], shared_tokenizer)
    assert f"mapping={json.dumps(mapping)}" in str(caught.value)
    assert prepare([row], shared_tokenizer, mapping=mapping).report.kept == 1


def test_tool_calls_in_a_column_of_their_own_are_trained_and_rows_without_an_answer_are_counted():
    tokenizer = makers.tokenizer("qwen-3")
    row, _, _ = shapes.KNOWN["xlam-function-calling"]
    (made,) = prepare([row], tokenizer).dataset
    said = trained(tokenizer, made)
    assert '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>' in said
    assert '"description": "d"' in tokenizer.decode(made["input_ids"])
    squad = [{"question": "q", "answers": {"text": texts, "answer_start": []}} for texts in (["a"], [])]
    report = prepare(squad, tokenizer, on_error="skip").report
    assert report.dropped == {"broken": 1} and "'answers' is empty" in report.examples["broken"]


def test_several_columns_can_make_one_part(shared_tokenizer: Any):
    rows = [{"q": "why", "ctx": "snow", "a": "cold", "b": "!"}, {"q": "why", "ctx": "", "a": "so", "b": "."}]
    mapping = {"user": "{q}?[[ ({ctx})]]", "assistant": "{a}{b}"}
    prepared = prepare(rows, shared_tokenizer, mapping=mapping, train_on="all")
    texts = [shared_tokenizer.decode(row["input_ids"]) for row in prepared.dataset]
    assert "why? (snow)<|im_end|>" in texts[0] and "cold!<|im_end|>" in texts[0]
    assert "why?<|im_end|>" in texts[1] and "so.<|im_end|>" in texts[1]
    joined = prepare(rows, shared_tokenizer, mapping={"text": "{q}: {a}"}).dataset[0]
    assert shared_tokenizer.decode(joined["input_ids"]).startswith("why: cold")
    with pytest.raises(DatasetError, match="no column 'x'"):
        prepare(rows, shared_tokenizer, mapping={"user": "{x}", "assistant": "a"})
