"""Chat: talk to a model in the notebook, with and without its adapter, while its answer is being written."""

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, ClassVar

import ipywidgets as widgets
import traitlets

from sloth_nb.errors import ModelError

from . import controls
from .conversation import Conversation, Side, Turn
from .html import Markup, element
from .panel import Panel
from .pulse import Pulse

__all__ = ["Chat"]


class Chat(Panel):
    """A conversation with streamed answers; "tuned | base" side by side where the model has an adapter.

    Args:
        model: a causal language model, with or without a LoRA adapter.
        tokenizer: its tokenizer.
        system: the system prompt.
        compare: answer a second time with the adapter off. By default where there is an adapter.
        temperature, top_p, max_new_tokens: as controls and as arguments; temperature 0 takes the likeliest.

    Example:
        >>> chat = Chat(model, tokenizer); chat        # shows itself; Enter sends
        >>> chat.ask("Who are you?")                   # the same from code, in any host
    """

    heading: ClassVar[str] = "Chat"
    flushes_per_second: ClassVar[int] = 15

    system = traitlets.Unicode("", help="system prompt")
    compare = traitlets.Bool(False, help="answer with the adapter off as well")
    temperature = traitlets.Float(0.7, min=0.0, max=2.0, help="0 takes the likeliest token")
    top_p = traitlets.Float(0.9, min=0.05, max=1.0, help="share of probability that tokens are drawn from")
    max_new_tokens = traitlets.Int(256, min=1, max=8192, help="length of an answer at most")
    _question = traitlets.Unicode("")

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        system: str | None = None,
        compare: bool | None = None,
        **options: Any,
    ):
        adapted = callable(getattr(model, "disable_adapter", None))
        if compare and not adapted:
            raise ModelError(
                "Chat(compare=True) needs a model with an adapter (of get_peft_model); this one has none. "
                "Leave compare out."
            )
        super().__init__(system=system or "", compare=adapted if compare is None else compare, **options)
        self.model, self.tokenizer = model, tokenizer
        self.conversation = Conversation()
        self._adapted = adapted
        self._stop = threading.Event()
        self._busy = threading.Lock()
        self._turns: widgets.VBox | None = None
        self._buttons: tuple[widgets.Button, ...] = ()
        self._pulse = Pulse(self._draw_last, 1 / self.flushes_per_second)

    # For code -----------------------------------------------------------------------------------------------

    def ask(self, question: str) -> str:
        """Asks, shows the turn in the panel, and returns the answer (the tuned one) when it is complete.

        Raises:
            ModelError: an answer is being written already.
        """
        if (turn := self._begin(question)) is None:
            raise ModelError("The chat is still answering. Wait for its answer, or press Stop.")
        try:
            self._answer(turn)
        finally:
            self._end(turn)
        return turn.answers["tuned"].strip()

    def stop(self) -> None:
        """Ends the answer that is being written; what there is of it stays."""
        self._stop.set()

    def clear(self) -> None:
        """Forgets the conversation."""
        if self._busy.locked():
            self.say("Still answering: press Stop first.", "warn")
            return
        self.conversation.turns.clear()
        if self._turns is not None:
            self._turns.children = (_nothing_said(),)
        self.say("")
        self.flush()

    @property
    def history(self) -> list[dict[str, str]]:
        """The conversation so far as messages (the tuned side's), the system prompt first."""
        if not self.conversation.turns:
            return [{"role": "system", "content": self.system}] if self.system else []
        asked = self.conversation.messages("tuned", self.system)
        last = self.conversation.turns[-1].answers["tuned"].strip()
        return [*asked, {"role": "assistant", "content": last}]

    # Answering ----------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Enter or Send: the answer is written in a thread, so that Stop can be pressed."""
        question = self._question.strip()
        if not question:
            return
        if (turn := self._begin(question)) is None:
            self.say("Still answering: press Stop first.", "warn")
            return
        self._question = ""
        threading.Thread(target=self._answer_behind, args=(turn,), name="sloth-nb-chat", daemon=True).start()

    def _answer_behind(self, turn: Turn) -> None:
        try:
            self._answer(turn)
        except Exception as error:  # a thread has nobody to raise to: the turn shows it, this announces it
            self.say(f"{type(error).__name__}: {error}", "bad")
        finally:
            self._end(turn)

    def _begin(self, question: str) -> Turn | None:
        """A new turn, or none while an answer is being written. ``_end`` closes it."""
        if not self._busy.acquire(blocking=False):
            return None
        sides: list[Side] = ["tuned", "base"] if self.compare and self._adapted else ["tuned"]
        turn = Turn(question, dict.fromkeys(sides, ""))
        self._stop.clear()
        self.conversation.turns.append(turn)
        if self._turns is not None:
            earlier = self._turns.children if len(self.conversation.turns) > 1 else ()
            self._turns.children = (*earlier, widgets.HTML(turn.html()))
        self._set_buttons()
        return turn

    def _answer(self, turn: Turn) -> None:
        begun = time.monotonic()
        try:
            self._write(turn)
        except BaseException as error:
            turn.note = f"✖ {type(error).__name__}: {error}".rstrip(": ")
            raise
        self.say(f"{'Stopped' if turn.note else 'Answered'} after {time.monotonic() - begun:.1f} s.")

    def _write(self, turn: Turn) -> None:
        from sloth_nb.inference import stream

        for side in turn.answers:
            turn.pending = side
            self._pulse.poke()
            pieces = stream(
                self.model,
                self.tokenizer,
                self.conversation.messages(side, self.system),
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                adapter=side == "tuned",
                stop=self._stop,
            )
            for piece in pieces:
                turn.answers[side] += piece
                self._pulse.poke()
            if self._stop.is_set():
                turn.note = "Stopped."
                break

    def _end(self, turn: Turn) -> None:
        turn.pending = None
        self._pulse.now()
        self._busy.release()
        self._set_buttons()
        self.flush()

    # What there is to see -----------------------------------------------------------------------------------

    def _header(self) -> Markup:
        name = _name_of(self.model)
        badge = element("span", name, class_="sloth-badge") if name else None
        return element("div", element("h3", self.heading), badge, class_="sloth-head")

    def _body(self) -> Sequence[widgets.Widget]:
        said = tuple(widgets.HTML(turn.html()) for turn in self.conversation.turns)
        self._turns = widgets.VBox(said or (_nothing_said(),), layout=widgets.Layout(overflow="visible"))
        scroller = widgets.Box([self._turns])
        scroller.add_class("sloth-transcript")
        self._buttons = (
            controls.button("Stop", self.stop, help="Ends the answer being written"),
            controls.button("Send", self._send, help="Sends the message (Enter)", look="primary"),
            controls.button("Clear", self.clear, help="Forgets the conversation"),
        )
        stop, send, clear = self._buttons
        message = controls.text(
            self, "_question", "Message", placeholder="Ask something and press Enter", on_enter=self._send
        )
        self._set_buttons()
        asking = controls.row(message, send, stop, clear)
        return (scroller, asking, self._settings())

    def _settings(self) -> widgets.Widget:
        longest = max(2048, self.max_new_tokens)
        parts = [
            controls.text(self, "system", "System prompt", live=False, help="What the model is told first"),
            controls.row(
                controls.slider(self, "temperature", "Temperature", 0.0, 2.0, 0.05),
                controls.slider(self, "top_p", "Top-p", 0.05, 1.0, 0.05),
                controls.slider(
                    self, "max_new_tokens", "Length", 1, longest, 1, help="Tokens of an answer at most"
                ),
            ),
        ]
        if self._adapted:
            parts.append(controls.checkbox(self, "compare", "Compare with the base model (adapter off)"))
        return controls.fold("Settings", *parts, help="Shows or hides the settings of the answers")

    def _redraw(self) -> None:
        """A setting changes nothing of what was said."""

    def _draw_last(self) -> None:
        if self._turns is not None and self.conversation.turns:
            self._turns.children[-1].value = self.conversation.turns[-1].html()

    def _set_buttons(self) -> None:
        answering = self._busy.locked()
        for button, useful in zip(self._buttons, (answering, not answering, not answering), strict=False):
            button.disabled = not useful

    def _view(self) -> Markup:
        return self.conversation.html() or element("p", str(self.conversation), class_="quiet")

    def _text(self) -> str:
        return str(self.conversation)


def _name_of(model: Any) -> str:
    """What a person called the model, without the folders of this machine."""
    settings = sys.modules.get("sloth_nb.models.settings")  # loaded, if from_pretrained made the model
    given = settings.settings_of(model).name if settings else ""
    return PurePath(given or str(getattr(getattr(model, "config", None), "_name_or_path", ""))).name


def _nothing_said() -> widgets.HTML:
    return widgets.HTML(element("p", "Nothing has been said yet.", class_="quiet"))
