"""DataReport: what the rows became, counted by reason, as a table anyone can read before training starts."""

import math
from array import array
from dataclasses import dataclass, field

import numpy as np

__all__ = ["FLAWS", "REASONS", "DataReport"]

# Why a row was left out, in the words that the report uses.
REASONS = {
    "broken": "can't be read as a conversation",
    "refused": "refused by the chat template",
    "empty": "empty",
    "masked": "nothing to train on (no assistant turn)",
    "cut": "the trained part lies beyond max_length",
}

# What the checks find, in the words of the report.
FLAWS = {
    "duplicates": "are written exactly like an earlier row",
    "first": "begin with the assistant",
    "doubled": "have two turns of one speaker in a row",
    "system": "have a system message that is not the first",
    "unanswered": "end with a turn that nobody answers",
    "control": "hold control characters (first: {})",
    "replaced": "hold U+FFFD, which a wrong decoding leaves",
    "hidden": "hold characters that can't be seen (first: {})",
    "unwritable": "hold characters that the tokenizer can't write (first: {})",
    "mojibake": "look decoded with the wrong encoding (first: {})",
}


@dataclass
class DataReport:
    """Counts over one prepared data set. ``str(report)`` is the table.

    ``rows`` were read and ``kept`` (more than read where long texts were parted); ``dropped`` counts the others by
    reason; ``flaws`` counts what looks wrong in rows that were kept; ``lengths`` are those of all rows, uncut.
    """

    rows: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    truncated: int = 0
    lost_tokens: int = 0
    resplit: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    lengths: array = field(default_factory=lambda: array("I"), repr=False)
    max_length: int | None = None
    schema: str = ""
    mask: str = ""
    packs: int = 0
    parted: int = 0
    pieces: int = 0
    unsaid: dict[str, int] = field(default_factory=dict)
    flaws: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def drop(self, reason: str, example: str = "", *, times: int = 1) -> None:
        """Counts a row that is left out, or several."""
        if times:
            self.dropped[reason] = self.dropped.get(reason, 0) + times
        if example:
            self.examples.setdefault(reason, example)

    def flaw(self, name: str, row: int, detail: str = "") -> None:
        """Counts something that looks wrong in a row; the first such row is remembered."""
        self.flaws[name] = self.flaws.get(name, 0) + 1
        self.examples.setdefault(name, f"row {row:,}" + (f", {detail}" if detail else ""))

    def clear(self) -> None:
        """Starts counting anew, for a stream that is read again."""
        fresh = DataReport(max_length=self.max_length, schema=self.schema, mask=self.mask, notes=self.notes)
        self.__dict__.update(fresh.__dict__)

    @property
    def longest(self) -> int:
        """The longest row's tokens, before anything was cut."""
        return max(self.lengths, default=0)

    @property
    def fill(self) -> float:
        """How full the packs are, 0 to 1."""
        return self.tokens / (self.packs * self.max_length) if self.packs and self.max_length else 0.0

    @property
    def trained_share(self) -> float:
        """The share of tokens that are learnt, 0 to 1."""
        return self.trained_tokens / self.tokens if self.tokens else 0.0

    def steps(
        self, batch_size: int, gradient_accumulation: int = 1, epochs: float = 1.0, devices: int = 1
    ) -> int:
        """How many optimiser steps a run of so many epochs takes."""
        batches = math.ceil((self.packs or self.kept) / (batch_size * devices))
        return math.ceil(max(1, batches // gradient_accumulation) * epochs)

    def histogram(self, buckets: int = 12) -> list[tuple[int, int, int]]:
        """(from, to, rows) of row lengths, uncut, in ``buckets`` equal steps from the shortest to the longest."""
        if not self.lengths:
            return []
        lengths = np.frombuffer(self.lengths, dtype=np.uint32)
        least, most = int(lengths.min()), int(lengths.max())
        counts, edges = np.histogram(lengths, bins=min(buckets, most - least + 1), range=(least, most + 1))
        bounds = np.ceil(edges).astype(int).tolist()
        return [(a, b, n) for a, b, n in zip(bounds, bounds[1:], counts.tolist(), strict=False)]

    def why_dropped(self) -> str:
        """The dropped rows by reason, in one clause."""
        return "; ".join(
            f"{count:,} {REASONS[reason]}{self._first(reason)}" for reason, count in self.dropped.items()
        )

    def lines(self) -> list[tuple[str, str]]:
        """The table's rows: a label and what it says."""
        table = [("recognised", self.schema), ("rows", f"{self.rows:,} read, {self.kept:,} kept")]
        if self.parted:
            table.append(("parted", f"{self.parted:,} long texts, into {self.pieces:,} rows"))
        for reason, count in self.dropped.items():
            table.append(("left out", f"{count:,} rows: {REASONS[reason]}{self._first(reason)}"))
        cut = f"{self.truncated:,} rows, cut to {self.max_length or 0:,} tokens ({self.lost_tokens:,} tokens lost)"
        table.append(("truncated", cut if self.truncated else "none"))
        trained = f"of which {self.trained_tokens:,} trained ({self.trained_share:.1%})"
        table.append(("tokens", f"{self.tokens:,} an epoch, {trained}"))
        table.append(("row lengths", self._lengths()))
        table.append(("trained on", self.mask))
        table += [
            ("left unsaid", f"{n:,} rows have {part}: the template leaves it out")
            for part, n in self.unsaid.items()
        ]
        table += [("look at", text) for text in self.flawed()]
        table += [("note", text) for text in self.notes]
        if self.resplit:
            table.append(("split tokens", f"{self.resplit:,} rows: a token reached across the turn's edge"))
        if self.packs:
            table.append(
                ("packs", f"{self.packs:,} of {self.max_length or 0:,} tokens, {self.fill:.1%} full")
            )
        return table

    def flawed(self) -> list[str]:
        """What looks wrong, one sentence each."""
        said = []
        for name, count in self.flaws.items():
            example = self.examples[name]
            text = FLAWS[name]
            said.append(
                f"{count:,} rows {text.format(example) if '{}' in text else f'{text} (first: {example})'}"
            )
        return said

    def _lengths(self) -> str:
        if not self.lengths:
            return "none"
        half, most = (
            np.quantile(np.frombuffer(self.lengths, dtype=np.uint32), (0.5, 0.95)).astype(int).tolist()
        )
        return f"half have at most {half:,} tokens, 95 % at most {most:,}, the longest {self.longest:,}"

    def _first(self, reason: str) -> str:
        return f" (first: {self.examples[reason]})" if reason in self.examples else ""

    def __str__(self) -> str:
        lines = self.lines()
        width = max(len(label) for label, _ in lines)
        return "\n".join(f"{label:<{width}}  {text}" for label, text in lines)
