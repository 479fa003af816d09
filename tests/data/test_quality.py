"""The report: every row accounted for, and what looks wrong in it counted."""

import string
from itertools import pairwise
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sloth_nb.data import DataReport, prepare
from sloth_nb.errors import SlothWarning


def chat(*contents: str, roles: str = "uaua") -> dict[str, Any]:
    names = {"u": "user", "a": "assistant", "s": "system"}
    return {"messages": [{"role": names[r], "content": c} for r, c in zip(roles, contents, strict=False)]}


GOOD = [chat(f"question {i}", f"answer {i}") for i in range(8)]
FLAWED = {
    "duplicates": GOOD[3],
    "first": chat("a", "q", "b", roles="aua"),
    "doubled": chat("q", "q2", "a", roles="uua"),
    "system": chat("q", "s", "a", roles="usa"),
    "unanswered": chat("q", "a", "q2", roles="uau"),
    "control": chat("q\x07", "a"),
    "replaced": chat("caf\ufffd", "a"),
    "hidden": chat("q\u202e", "a"),
    "mojibake": chat("cafÃ©", "a"),
}


@pytest.mark.parametrize("flaw", FLAWED)
def test_each_flaw_is_counted_with_its_first_row_and_the_row_is_kept(shared_tokenizer: Any, flaw: str):
    report = prepare([*GOOD, FLAWED[flaw], *GOOD[:0]], shared_tokenizer).report
    assert report.flaws == {flaw: 1} and report.kept == 9
    assert "row 9" in report.examples[flaw]
    assert any("look at" in line and "1 rows" in line for line in str(report).splitlines())


def test_sound_rows_of_any_language_have_no_flaw(shared_tokenizer: Any):
    words = [
        "naïve café",
        "漢字かな",
        "नमस्ते",
        "مرحبا بالعالم",
        "👩‍👩‍👧 🦥",
        "x² ≤ 3 € — “so”",
        "a\tb\n\nc",
        "Ã",
        "½ kg",
    ]
    report = prepare([chat(word, word) for word in words], shared_tokenizer).report
    assert report.flaws == {}


def test_the_counts_add_up(shared_tokenizer: Any):
    rows = [*GOOD, chat("q", "long " * 90), chat("long " * 90, "a"), {"messages": []}]
    prepared = prepare(rows, shared_tokenizer, max_length=64)
    report = prepared.report
    assert report.rows == 11 == report.kept + sum(report.dropped.values())
    assert report.dropped == {"cut": 1, "empty": 1} and report.truncated == 2
    kept = prepared.dataset.to_list()
    assert report.tokens == sum(len(row["input_ids"]) for row in kept)
    assert report.trained_tokens == sum(label != -100 for row in kept for label in row["labels"][1:])
    assert report.lost_tokens == sum(report.lengths) - sum(min(n, 64) for n in report.lengths)
    assert sum(n for _, _, n in report.histogram()) == len(report.lengths) == 10
    assert report.longest == max(report.lengths)


def test_the_histogram_covers_all_lengths_without_gaps():
    report = DataReport()
    report.lengths.extend([1, 5, 5, 17, 100])
    bars = report.histogram(7)
    assert bars[0][0] == 1 and bars[-1][1] == 101 and sum(n for *_, n in bars) == 5
    assert all(a[1] == b[0] for a, b in pairwise(bars))
    assert DataReport().histogram() == []


@pytest.mark.parametrize(
    ("rows", "packs", "arguments", "steps"),
    [
        (120, 0, (2, 4), 15),
        (120, 0, (2, 4, 3), 45),
        (121, 0, (8,), 16),
        (120, 10, (2,), 5),
        (3, 0, (8, 4), 1),
    ],
)
def test_steps_are_those_of_a_run(rows: int, packs: int, arguments: tuple, steps: int):
    assert DataReport(kept=rows, packs=packs).steps(*arguments) == steps


def test_characters_that_the_tokenizer_drops_are_told(shared_tokenizer: Any):
    report = prepare([*GOOD, chat("a\x1db", "a"), chat("\U00040000", "a")], shared_tokenizer).report
    assert report.flaws["unwritable"] == 2 and "U+001D" in report.examples["unwritable"]


def test_a_combining_accent_is_not_taken_for_a_lost_character(shared_tokenizer: Any):
    assert not prepare([chat("cafe\u0301", "u\u0308ber")], shared_tokenizer).report.flaws


def test_a_tokenizer_without_eos_is_noted_for_texts(tokenizer: Any):
    tokenizer.eos_token = None
    assert "no EOS" in str(prepare([{"text": "once upon a time"}], tokenizer).report)


def test_a_tokenizer_that_loses_spaces_is_told_before_training_and_its_rows_are_counted():
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(string.ascii_letters)}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="Z")
    with pytest.warns(SlothWarning, match="loses spaces, line breaks"):
        report = prepare([{"text": "two words"}, {"text": "one"}], tokenizer).report
    assert report.flaws["unwritable"] == 1 and "U+0020" in report.examples["unwritable"]
    assert "tokenizer.json" in str(report)
