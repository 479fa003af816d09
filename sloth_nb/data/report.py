"""DataReport: what the rows became, counted by reason, as a table anyone can read before training starts."""

from dataclasses import dataclass, field

__all__ = ["REASONS", "DataReport"]

# Why a row was left out, in the words that the report uses.
REASONS = {
    "broken": "can't be read as a conversation",
    "refused": "refused by the chat template",
    "empty": "empty",
    "masked": "nothing to train on (no assistant turn)",
    "cut": "the trained part lies beyond max_length",
}


@dataclass
class DataReport:
    """Counts over one prepared data set. ``str(report)`` is the table."""

    rows: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    truncated: int = 0
    resplit: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    max_length: int | None = None
    schema: str = ""
    mask: str = ""
    packs: int = 0
    parted: int = 0
    pieces: int = 0
    unsaid: dict[str, int] = field(default_factory=dict)

    @property
    def fill(self) -> float:
        """How full the packs are, 0 to 1."""
        return self.tokens / (self.packs * self.max_length) if self.packs and self.max_length else 0.0

    def clear(self) -> None:
        """Starts counting anew, for a stream that is read again."""
        fresh = DataReport(max_length=self.max_length, schema=self.schema, mask=self.mask)
        self.__dict__.update(fresh.__dict__)

    def drop(self, reason: str, example: str = "") -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if example:
            self.examples.setdefault(reason, example)

    def why_dropped(self) -> str:
        """The dropped rows by reason, in one clause."""
        parts = []
        for reason, count in self.dropped.items():
            example = f" (first: {self.examples[reason]})" if reason in self.examples else ""
            parts.append(f"{count:,} {REASONS[reason]}{example}")
        return "; ".join(parts)

    def lines(self) -> list[tuple[str, str]]:
        """The table's rows: a label and what it says."""
        share = 100 * self.trained_tokens / self.tokens if self.tokens else 0.0
        table = [
            ("recognised", self.schema),
            ("rows", f"{self.rows:,} read, {self.kept:,} kept"),
            *[("left out", f"{n:,} rows: {REASONS[r]}" + self._first(r)) for r, n in self.dropped.items()],
            (
                "truncated",
                f"{self.truncated:,} rows, cut to {self.max_length:,} tokens" if self.truncated else "none",
            ),
            ("tokens", f"{self.tokens:,}, of which {self.trained_tokens:,} trained ({share:.1f} %)"),
            ("longest row", f"{self.longest:,} tokens"),
            ("trained on", self.mask),
        ]
        if self.parted:
            table.append(("parted", f"{self.parted:,} long texts, into {self.pieces:,} rows"))
        table += [
            ("left unsaid", f"{n:,} rows have {part}: the template leaves it out")
            for part, n in self.unsaid.items()
        ]
        if self.resplit:
            table.append(("split tokens", f"{self.resplit:,} rows: a token reached across the turn's edge"))
        if self.packs:
            table.append(("packs", f"{self.packs:,} of {self.max_length:,} tokens, {self.fill:.1%} full"))
        return table

    def _first(self, reason: str) -> str:
        return f" (first: {self.examples[reason]})" if reason in self.examples else ""

    def __str__(self) -> str:
        lines = self.lines()
        width = max(len(label) for label, _ in lines)
        return "\n".join(f"{label:<{width}}  {text}" for label, text in lines)
