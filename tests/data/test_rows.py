"""Rows on demand: any page of any source, and nothing read that wasn't asked for."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloth_nb.data import open_rows
from sloth_nb.data.rows import LineRows, StreamRows
from sloth_nb.errors import DatasetError

ROWS = [{"n": i, "text": f"row {i}"} for i in range(5000)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rows")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "a.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    data = datasets.Dataset.from_list(ROWS)
    data.to_parquet(folder / "a.parquet", batch_size=700)
    data.to_csv(folder / "a.csv")
    stream = data.to_iterable_dataset()
    files = {name: folder / name for name in ("a.jsonl", "a.jsonl.gz", "a.parquet", "a.csv")}
    return {**files, "dataset": data, "stream": stream, "list": ROWS}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.csv", "dataset", "stream", "list"])
def test_every_source_gives_any_page_forwards_and_backwards(sources: dict[str, Any], name: str):
    rows = open_rows(sources[name])
    for start, count in ((0, 25), (4321, 25), (1000, 50), (4990, 25), (6000, 10), (1023, 3), (0, 1)):
        found = [row["n"] if name != "a.csv" else int(row["n"]) for row in rows.page(start, count)]
        assert found == list(range(5000))[start : start + count]
    assert rows.known == 5000 == rows.estimate()


def test_only_the_beginning_of_a_long_file_is_read(tmp_path: Path):
    path = tmp_path / "long.jsonl"
    line = json.dumps({"text": "x" * 990}) + "\n"
    path.write_text(line * 40_000, encoding="utf-8", newline="\n")
    rows = open_rows(path)
    assert isinstance(rows, LineRows)
    assert len(rows.page(0, 25)) == 25
    assert rows.known is None and rows._read < 0.3 * path.stat().st_size
    assert abs(rows.estimate() - 40_000) < 400
    assert len(rows.page(39_999, 5)) == 1 and rows.known == 40_000


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=400), st.booleans())
def test_lines_are_found_wherever_the_file_is_cut_into_chunks(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], ended: bool
):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    lines = [json.dumps({"i": i, "x": "é" * n}, ensure_ascii=False) for i, n in enumerate(lengths)]
    path.write_text("\n".join(lines) + ("\n" if ended and lines else ""), encoding="utf-8", newline="\n")
    rows = LineRows(path)
    import sloth_nb.data.rows as module

    held = module._CHUNK, module._PIECE
    module._CHUNK, module._PIECE = 4096, 600
    try:
        for start in range(0, len(lines) + 2, 37):
            assert [row["i"] for row in rows.page(start, 37)] == list(range(len(lines)))[start : start + 37]
        assert rows.known == len(lines)
    finally:
        module._CHUNK, module._PIECE = held


def test_a_broken_line_is_a_row_that_says_so(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n{"a": \n[3]\n{"a": "\xff"}\n{"a": 2}')
    page = open_rows(path).page(0, 9)
    said = [row.get(LineRows.BROKEN, row.get("a")) for row in page]
    assert said[0] == 1 and said[4] == 2
    assert [text.split(":")[0].split(" holds")[0] for text in said[1:4]] == ["line 2", "line 3", "line 4"]


def test_a_file_that_is_marked_as_utf_16_is_named_so(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n', encoding="utf-16")
    with pytest.raises(DatasetError, match=r"a.jsonl is UTF-16, .*, not UTF-8\. Save it as UTF-8"):
        open_rows(path)


def test_a_stream_holds_few_rows_however_far_it_is_read():
    rows = StreamRows(lambda: ({"n": i} for i in range(100_000)), keep=100)
    assert rows.page(90_000, 5)[0]["n"] == 90_000
    assert len(rows._held) < 400
    assert rows.page(3, 1) == [{"n": 3}]
