"""Reading: every usual file becomes rows, and a broken one says where it breaks."""

import json
from pathlib import Path

import datasets
import pytest

from sloth_nb.data import load_data
from sloth_nb.errors import DatasetError, SlothWarning

ROWS = [{"instruction": f"say {i}", "output": str(i)} for i in range(3)]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return write(tmp_path / "train.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n")


def test_jsonl_gives_its_rows(jsonl: Path):
    assert load_data(jsonl).to_list() == ROWS


def test_json_csv_and_parquet_give_the_same_rows(tmp_path: Path):
    files = [write(tmp_path / "a.json", json.dumps(ROWS)), tmp_path / "b.csv", tmp_path / "c.parquet"]
    datasets.Dataset.from_list(ROWS).to_csv(files[1])
    datasets.Dataset.from_list(ROWS).to_parquet(files[2])
    for file in files:
        assert load_data(file).to_list() == ROWS, file.suffix


def test_json_may_wrap_its_rows_or_be_columns_or_really_be_jsonl(tmp_path: Path, jsonl: Path):
    wrapped = write(tmp_path / "a.json", json.dumps({"version": 1, "data": ROWS}))
    columns = write(tmp_path / "b.json", json.dumps({k: [r[k] for r in ROWS] for k in ROWS[0]}))
    lines = write(tmp_path / "c.json", jsonl.read_text())
    for file in (wrapped, columns, lines):
        assert load_data(file).to_list() == ROWS, file.name


def test_a_byte_order_mark_and_blank_lines_are_passed_over(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", '{"text": "é"}\n\n{"text": "ß"}\n', "utf-8-sig")
    assert load_data(path)["text"][:] == ["é", "ß"]


def test_a_broken_line_is_named_with_its_number_and_reason(jsonl: Path):
    jsonl.write_text(jsonl.read_text() + '{"instruction": "cut', encoding="utf-8")
    with pytest.raises(DatasetError, match=r"line 4 of train.jsonl is not a JSON row \(unterminated string"):
        load_data(jsonl)


def test_a_broken_line_is_left_out_only_when_asked_and_is_counted(jsonl: Path):
    jsonl.write_text("[1]\n" + jsonl.read_text() + "oops\n", encoding="utf-8")
    with pytest.warns(SlothWarning, match=r"2 broken lines left out \(line 1: it holds a list.*line 5: "):
        assert load_data(jsonl, on_error="skip").to_list() == ROWS


def test_a_wrong_encoding_is_named(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", '{"text": "café"}\n', "latin-1")
    with pytest.raises(DatasetError, match=r"not UTF-8: byte 0xe9"):
        load_data(path)


def test_a_missing_file_says_what_lies_beside_it(jsonl: Path):
    with pytest.raises(DatasetError, match=r"no file .*tain.jsonl.*train.jsonl"):
        load_data(jsonl.parent / "tain.jsonl")


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", ""), ("b.json", "[]"), ("c.csv", "a,b\n")])
def test_an_empty_file_is_refused(tmp_path: Path, name: str, text: str):
    with pytest.raises(DatasetError, match=r"empty|no rows"):
        load_data(write(tmp_path / name, text))


def test_a_csv_row_with_too_many_cells_is_named(tmp_path: Path):
    path = write(tmp_path / "a.csv", "question,answer\nwho,me\nwho, then,me\n")
    with pytest.raises(DatasetError, match=r"line 3 of a.csv has more cells than the header's 2"):
        load_data(path)


def test_a_column_that_mixes_types_is_named_with_the_rows(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": 1}\n')
    with pytest.raises(DatasetError, match=r"column 'text' of .* mixes types: str .*row 1.*int .*row 2"):
        load_data(path)


def test_rows_with_different_keys_keep_all_of_them():
    assert load_data([{"a": 1}, {"b": "x"}]).to_list() == [{"a": 1, "b": None}, {"a": None, "b": "x"}]


def test_tool_arguments_keep_their_own_keys():
    calls = [{"function": {"name": "f", "arguments": {key: 1}}} for key in "ab"]
    rows = [{"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]} for call in calls]
    stored = load_data(rows)[0]["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(stored) == {"a": 1}


def test_a_dataset_passes_through_and_a_dict_of_splits_needs_a_choice():
    data = datasets.Dataset.from_list(ROWS)
    splits = datasets.DatasetDict({"train": data, "test": data.select([0])})
    assert load_data(data) is data
    assert len(load_data(splits, split="test")) == 1
    with pytest.raises(DatasetError, match=r"split= one of 'train', 'test'"):
        load_data(splits)
