"""A conversation with a model, or with the same model with and without its adapter. No widgets here."""

from dataclasses import dataclass, field
from typing import Literal

from .html import Markup, element, join

__all__ = ["Conversation", "Side", "Turn"]

Side = Literal["tuned", "base"]
NAMES: dict[Side, str] = {"tuned": "Tuned", "base": "Base"}


@dataclass
class Turn:
    """A question and what each side answered; ``pending`` is the side that is answering."""

    question: str
    answers: dict[Side, str]
    pending: Side | None = None
    note: str = ""

    def html(self) -> Markup:
        """The turn, readable with and without styles; the texts are foreign and stay text."""
        asked = element("p", element("b", "You: "), _lines(self.question), class_="sloth-asked")
        note = element("p", self.note, class_="quiet") if self.note else None
        if len(self.answers) == 1:
            ((side, text),) = self.answers.items()
            said = element("p", element("b", "Model: "), self._text(side, text), class_="sloth-said")
            return element("div", asked, said, note, class_="sloth-turn")
        head = element("tr", [element("th", NAMES[side], scope="col") for side in self.answers])
        body = element("tr", [element("td", self._text(side, text)) for side, text in self.answers.items()])
        table = element("table", element("thead", head), element("tbody", body), class_="sloth-compared")
        return element("div", asked, table, note, class_="sloth-turn")

    def _text(self, side: Side, text: str) -> Markup:
        cursor = element("span", "▍", class_="sloth-cursor") if side == self.pending else None
        return join([_lines(text.strip()), cursor])

    def __str__(self) -> str:
        names = NAMES if len(self.answers) > 1 else dict.fromkeys(self.answers, "Model")
        said = [f"{names[side]}: {text.strip()}" for side, text in self.answers.items()]
        return "\n".join([f"You: {self.question}", *said, *([self.note] if self.note else [])])


@dataclass
class Conversation:
    """Turns in order. Each side remembers its own answers, so that neither speaks with the other's voice."""

    turns: list[Turn] = field(default_factory=list)

    def messages(self, side: Side, system: str = "") -> list[dict[str, str]]:
        """What the model is given: the system prompt, the earlier turns of this side, the newest question."""
        messages = [{"role": "system", "content": system}] if system else []
        for turn in self.turns[:-1]:
            answer = turn.answers.get(side, turn.answers.get("tuned", ""))
            if answer.strip():  # a turn that failed or was stopped at once is no example to follow
                messages.append({"role": "user", "content": turn.question})
                messages.append({"role": "assistant", "content": answer.strip()})
        return [*messages, {"role": "user", "content": self.turns[-1].question}]

    def html(self) -> Markup:
        return join(turn.html() for turn in self.turns)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.turns)) or "Nothing has been said yet."


def _lines(text: str) -> Markup:
    """Line ends survive where style sheets don't."""
    return join(text.splitlines(), element("br"))
