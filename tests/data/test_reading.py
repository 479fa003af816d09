"""Reading: every usual file becomes rows, and a broken one says where it breaks."""

import datetime
import gzip
import json
from pathlib import Path

import datasets
import numpy
import pytest

from sloth_nb.data import load_data
from sloth_nb.data.rows import LineRows, open_rows
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


@pytest.mark.parametrize("ending", ["gz", "zst", "bz2"])
def test_compressed_files_are_read_as_they_are(jsonl: Path, ending: str):
    import pyarrow

    packed = jsonl.with_name(f"train.jsonl.{ending}")
    codec = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}[ending]
    with pyarrow.output_stream(str(packed), compression=codec) as file:
        file.write(jsonl.read_bytes())
    assert load_data(packed).to_list() == ROWS


def test_a_compressed_file_cut_short_is_told(jsonl: Path):
    packed = jsonl.with_name("train.jsonl.gz")
    packed.write_bytes(gzip.compress(jsonl.read_bytes() * 5000)[:-2000])
    with pytest.raises(DatasetError, match=r"train.jsonl.gz can't be decompressed"):
        load_data(packed)


def test_tsv_arrow_and_feather_give_the_same_rows(tmp_path: Path):
    import pyarrow

    table = pyarrow.Table.from_pylist(ROWS)
    tsv = write(tmp_path / "a.tsv", "instruction\toutput\n" + "".join(f"say {i}\t{i}\n" for i in range(3)))
    with pyarrow.ipc.new_file(str(tmp_path / "b.arrow"), table.schema) as file:
        file.write_table(table)
    with pyarrow.ipc.new_stream(str(tmp_path / "c.arrow"), table.schema) as file:
        file.write_table(table)
    for path in (tsv, tmp_path / "b.arrow", tmp_path / "c.arrow"):
        assert load_data(path).to_list() == ROWS, path.name


def test_a_csv_with_semicolons_is_read_by_its_header(tmp_path: Path):
    path = write(tmp_path / "a.csv", 'question;answer\n"who; then";me\n')
    assert load_data(path).to_list() == [{"question": "who; then", "answer": "me"}]


def test_text_and_markdown_are_rows_of_text_and_long_ones_are_parted_at_empty_lines(tmp_path: Path):
    short = write(tmp_path / "a.md", "# Sloths\n\nThey sleep.\n")
    assert load_data(short).to_list() == [{"text": "# Sloths\n\nThey sleep."}]
    paragraph = "They sleep. " * 1000 + "\n\n"
    rows = load_data(write(tmp_path / "b.txt", paragraph * 200))["text"][:]
    assert len(rows) == 3 and all(len(row) < 1.1 * (1 << 20) for row in rows)
    assert sum(row.count("They sleep.") for row in rows) == 200_000


def test_frames_and_tables_are_taken_as_they_are():
    import pandas
    import polars
    import pyarrow

    for frame in (pandas.DataFrame(ROWS), polars.DataFrame(ROWS), pyarrow.Table.from_pylist(ROWS)):
        assert load_data(frame).to_list() == ROWS
    assert load_data(polars.LazyFrame(ROWS)).to_list() == ROWS


MIXED = {"text": ["a", 1, None]}
HALF = {"text": ["a", "b\udfff"]}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (MIXED, r"'text' of the dict mixes types: str \(first in row 1\), int \(first in row 2\)"),
        (HALF, r"row 2 of the dict, column 'text': it holds '\\udfff', half of a character"),
        ({"a": ["x", "y"], "b": ["z"]}, r"the dict have different numbers of rows: 'a' 2, 'b' 1\."),
        ({"a": "text"}, r"'a' of the dict is a str, not a list"),
        ({"a": None}, r"'a' of the dict is a NoneType, not a list"),
    ],
)
def test_columns_that_make_no_table_are_named(columns, said):
    with pytest.raises(DatasetError, match=said):
        load_data(columns)


def test_a_frames_columns_that_make_no_table_are_named():
    import pandas

    with pytest.raises(DatasetError, match=r"'text' of the DataFrame mixes types: str .*, int "):
        load_data(pandas.DataFrame(MIXED))
    with pytest.raises(DatasetError, match="several columns named 'a'"):
        load_data(pandas.DataFrame([["x", "y"]], columns=["a", "a"]))
    halves = pandas.DataFrame({"text": pandas.Series(HALF["text"], dtype=object)})
    with pytest.raises(DatasetError, match="row 2 of the DataFrame, column 'text'"):
        load_data(halves)


DATED = {"n": "x", "on": datetime.date(2026, 1, 1)}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ([{"m": object()}], r"column 'm' of the list holds object, which can't be kept"),
        (
            [{"m": {(1, 2): "a\udfff"}}],
            r"column 'm' of the list holds dict, which can't be kept \(keys must be str",
        ),
        (
            [{"m": {"n": 1}}, {"m": DATED}],
            r"'m' of the list holds dict, .* \(Object of type date is not JSON",
        ),
        ({"m": [{"n": 1}, DATED]}, r"'m' of the dict holds dict, .* \(Object of type date is not JSON"),
        ([{"arguments": DATED}], r"'arguments' of the list holds dict, .* \(Object of type date is not JSON"),
        ({"m": [numpy.array([1j])]}, r"'m' of the dict holds ndarray, which can't be kept"),
        (
            {"m": [numpy.array(["a\udfff"], dtype=object)]},
            r"row 1 of the dict, column 'm': it holds '\\udfff'",
        ),
        ([{"m": {"n": 1}}, {"m": {"n": "a\udfff"}}], r"row 2 of the list, column 'm': it holds '\\udfff'"),
    ],
)
def test_cells_that_no_table_can_keep_are_named(source, said):
    with pytest.raises(DatasetError, match=said):
        load_data(source)


def test_dates_in_objects_of_which_some_files_hold_text_are_named(tmp_path: Path):
    datasets.Dataset.from_list([{"m": DATED}]).to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_list([{"m": json.dumps({"n": 1})}]).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(
        DatasetError, match=r"column 'm' of .* holds dict, .* \(Object of type date is not JSON"
    ):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([1, "1"], "has several columns named '1'"),
        (["a\0b"], r"has a column named 'a\\x00b'; a column's name is text, without NUL"),
        (["a\udfff"], r"has a column named 'a\\udfff'; a column's name is text, without NUL or half"),
    ],
)
def test_columns_names_that_make_no_table_are_named_in_every_source_of_columns(names, said):
    import pandas

    columns = {name: ["x"] for name in names}
    frame = pandas.DataFrame([["x" for _ in names]], columns=pandas.Index(names, dtype=object))
    for source, where in ((columns, "the dict"), (frame, "the DataFrame")):
        with pytest.raises(DatasetError, match=f"{where} {said}"):
            load_data(source)


def test_objects_of_different_shapes_in_a_column_are_kept_as_text():
    import pandas

    cells = [[{"role": "user", "content": "a"}], [{"role": "user", "content": [{"type": "text"}]}]]
    for source in ({"messages": cells}, pandas.DataFrame({"messages": cells}), {"messages": iter(cells)}):
        assert [json.loads(row) for row in load_data(source)["messages"]] == cells


def test_tool_arguments_keep_their_own_keys_in_every_source_of_columns():
    import pandas

    calls = [[{"function": {"name": "f", "arguments": cell}}] for cell in ({"x": 1}, {"y": None, "z": "k"})]
    tools = [[{"name": "f", "parameters": {key: {}}}] for key in "xy"]
    columns = {"tool_calls": calls, "tools": tools, "n": [1, 2]}
    frame = pandas.DataFrame(columns)
    expected = load_data(
        [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    )
    assert [json.loads(c[0]["function"]["arguments"]) for c in expected["tool_calls"]] == [
        {"x": 1},
        {"y": None, "z": "k"},
    ]
    for source in (columns, {name: iter(cells) for name, cells in columns.items()}, frame):
        assert load_data(source).to_list() == expected.to_list()
    assert frame["tool_calls"].tolist() == calls and frame["tools"].tolist() == tools


def test_a_frames_typed_columns_keep_their_types():
    import pandas

    numbers, moments = pandas.array([1, None], dtype="Int64"), pandas.to_datetime(["2026-01-01", None])
    frame = pandas.DataFrame({"n": numbers, "t": moments, "c": pandas.Categorical(["a", None])})
    data = load_data(frame)
    assert [data.features[name].dtype for name in frame] == ["int64", f"timestamp[{moments.unit}]", "string"]
    assert data[1] == {"n": None, "t": None, "c": None}


def test_a_stream_passes_through():
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    assert load_data(stream) is stream


def test_a_folder_and_a_glob_are_their_files_in_order(tmp_path: Path):
    for i in range(3):
        write(tmp_path / f"part-{i}.jsonl", json.dumps(ROWS[i]) + "\n")
    write(tmp_path / "README.md", "about")
    write(tmp_path / "model.bin", "x")
    with pytest.warns(SlothWarning, match=r"left out that hold no rows \(.bin\)"):
        assert load_data(tmp_path).to_list() == ROWS
    assert load_data(str(tmp_path / "part-*.jsonl")).to_list() == ROWS
    with pytest.raises(DatasetError, match="No file matches"):
        load_data(str(tmp_path / "*.parquet"))


def test_a_function_may_choose_among_several_splits_and_isn_t_asked_about_one(tmp_path: Path):
    asked: list[list[str]] = []

    def last(splits: list[str]) -> str:
        asked.append(splits)
        return splits[-1]

    data = datasets.Dataset.from_list(ROWS)
    assert load_data(datasets.DatasetDict({"a": data.select([0]), "b": data}), split=last).to_list() == ROWS
    for name, rows in {"test": ROWS[1:2], "train": ROWS}.items():
        datasets.Dataset.from_list(rows).to_json(tmp_path / f"{name}.jsonl")
    assert load_data(tmp_path, split=last).to_list() == ROWS
    assert asked == [["a", "b"], ["test", "train"]]
    (tmp_path / "test.jsonl").unlink()
    assert load_data(tmp_path, split=last).to_list() == load_data(ROWS, split=last).to_list() == ROWS
    assert len(asked) == 2


def test_a_folder_of_splits_needs_a_choice(tmp_path: Path):
    write(tmp_path / "train.jsonl", json.dumps(ROWS[0]) + "\n")
    write(tmp_path / "test.jsonl", json.dumps(ROWS[1]) + "\n")
    assert load_data(tmp_path, split="test").to_list() == ROWS[1:2]
    with pytest.raises(DatasetError, match="split= one of 'test', 'train'"):
        load_data(tmp_path)
    (tmp_path / "plain").mkdir()
    write(tmp_path / "plain" / "rows.jsonl", json.dumps(ROWS[0]) + "\n")
    with pytest.raises(DatasetError, match="no split 'train': none is named here"):
        load_data(tmp_path / "plain", split="train")


def test_a_saved_data_set_is_a_folder_too(tmp_path: Path):
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "a")
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "b")
    assert load_data(tmp_path / "a").to_list() == ROWS
    assert load_data(tmp_path / "b", split="train").to_list() == ROWS


def test_an_encoding_can_be_given(tmp_path: Path):
    path = write(tmp_path / "a.csv", "text\ncafé\n", "latin-1")
    with pytest.raises(DatasetError, match='encoding="latin-1"'):
        load_data(path)
    assert load_data(path, encoding="latin-1").to_list() == [{"text": "café"}]


@pytest.mark.parametrize("order", ["le", "be"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "text,n\ncafé,1\nthé,2\n"),
        ("a.jsonl", '{"text": "café", "n": "1"}\n{"text": "thé", "n": "2"}\n'),
        ("a.json", '[{"text": "café", "n": "1"}, {"text": "thé", "n": "2"}]'),
    ],
)
def test_a_file_that_is_marked_as_utf_16_is_named_so_and_read_when_told(
    tmp_path: Path, name: str, text: str, order: str
):
    path = write(tmp_path / name, "\ufeff" + text, f"utf-16-{order}")
    with pytest.raises(
        DatasetError, match=f'{name} is UTF-16, .* load_data\\("{name}", encoding="utf-16"\\)'
    ):
        load_data(path)
    expected = [{"text": "café", "n": "1"}, {"text": "thé", "n": "2"}]
    assert load_data(path, encoding="utf-16").to_list() == expected


@pytest.mark.parametrize("encoding", ["u16", "utf 16", "UTF_16"])
def test_an_encoding_may_be_named_as_python_lets_it_be(tmp_path: Path, encoding: str):
    path = write(tmp_path / "a.jsonl", '{"text": "café"}\n{"text": "thé"}\n', "utf-16")
    assert load_data(path, encoding=encoding)["text"][:] == ["café", "thé"]


@pytest.mark.parametrize("encoding", ["utf8", "UTF-8", "u8"])
def test_a_byte_order_mark_is_passed_over_however_utf_8_is_named(tmp_path: Path, encoding: str):
    path = write(tmp_path / "a.csv", "text\ncafé\n", "utf-8-sig")
    assert load_data(path, encoding=encoding).to_list() == [{"text": "café"}]


@pytest.mark.parametrize("encoding", ["nonsense", "rot13", ""])
@pytest.mark.parametrize("written", ["utf-8", "utf-16"])
def test_an_encoding_that_python_doesnt_know_is_named(tmp_path: Path, written: str, encoding: str):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n', written)
    with pytest.raises(DatasetError, match=f"There is no text encoding '{encoding}'"):
        load_data(path, encoding=encoding)


@pytest.mark.parametrize("half", [r"a \ud83d b", r"\udE00", r"\uDE00\uD83D", "a \ud83d b"])
def test_half_a_character_breaks_its_line_alone(tmp_path: Path, half: str):
    lines = [r'{"text": "whole \ud83d\ude00"}', f'{{"text": "{half}"}}', '{"text": "é"}']
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    with pytest.raises(
        DatasetError, match=r"line 2 of a.jsonl is not a JSON row \(it holds '\\u.*half of a char"
    ):
        load_data(path)
    with pytest.warns(SlothWarning, match="1 broken lines left out"):
        assert load_data(path, on_error="skip").to_list() == [{"text": "whole 😀"}, {"text": "é"}]
    assert "half of a character" in open_rows(path).page(1, 1)[0][LineRows.BROKEN]


def test_half_a_character_in_other_sources_is_named_with_its_row(tmp_path: Path):
    rows = [{"messages": [{"role": "user", "content": text}]} for text in ("whole", "a \ud83d b")]
    path = write(tmp_path / "a.json", json.dumps(rows))
    for source in (rows, path):
        with pytest.raises(
            DatasetError, match=r"row 2 of .*, column 'messages': it holds '\\ud83d', half of a"
        ):
            load_data(source)


def test_shapes_that_differ_between_rows_and_batches_lose_nothing(tmp_path: Path):
    plain = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, plain["messages"][1]]}
    lines = [json.dumps(plain)] * 10_001 + [json.dumps(parts)]
    data = load_data(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert json.loads(data[10_001]["messages"]) == parts["messages"]
    assert json.loads(data[0]["messages"]) == plain["messages"]


def test_a_name_that_is_neither_file_nor_hub_data_says_so():
    with pytest.raises(DatasetError, match="neither a file here nor a data set that the hub gives"):
        load_data("nobody/nothing")


def test_a_url_that_cant_be_fetched_says_so():
    with pytest.raises(DatasetError, match=r"http://127.0.0.1:9/a.jsonl can't be fetched"):
        load_data("http://127.0.0.1:9/a.jsonl")


def test_a_url_is_fetched_and_read(jsonl: Path):
    import functools
    import http.server
    import threading

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=jsonl.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert load_data(f"http://127.0.0.1:{server.server_port}/train.jsonl").to_list() == ROWS
        server.shutdown()


@pytest.mark.parametrize("name", ["a\0b", 3, "a\udfff"])
def test_a_column_s_name_that_is_no_plain_text_is_refused(name: str | int):
    with pytest.raises(DatasetError, match="a column's name is text"):
        load_data([{name: "x"}])


def test_the_reason_of_a_broken_line_reads_as_a_sentence(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n{"text": "cut\n')
    with pytest.raises(DatasetError, match=r"control character at column 14\).\n  1 row before it is fine"):
        load_data(path)
