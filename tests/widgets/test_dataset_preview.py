"""DatasetPreview: rows, three views of one, the report; all of it foreign text that stays text."""

import json
from pathlib import Path
from typing import Any

import pytest
from sloth_nb_widgets import DatasetPreview
from sloth_nb_widgets.dataset_html import short, visible

from sloth_nb.data import example, prepare
from sloth_nb.errors import DatasetError, SlothError


@pytest.fixture(autouse=True)
def no_late_snapshot(monkeypatch: pytest.MonkeyPatch):
    """The saved copy follows after a second; by then a test is over."""
    monkeypatch.setattr(DatasetPreview, "snapshot_delay", 600)


@pytest.fixture
def train() -> Any:
    return example("quickstart", split="train")


def pair(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer}


def test_the_conversation_shows_who_says_what_and_what_is_learnt(train: Any):
    view = DatasetPreview(train)._view()
    said = train[0]["messages"]
    assert all(turn["content"] in view for turn in said)
    assert view.count("learnt</span>") == 1
    assert "▶ 1" in view and 'aria-current="true"' in view


def test_the_text_is_the_template_s_and_what_is_learnt_stands_between_signs(
    train: Any, shared_tokenizer: Any
):
    view = DatasetPreview(train, shared_tokenizer, show="text")._view()
    answer = train[0]["messages"][1]["content"]
    assert f'⟦</span>{answer}&lt;|im_end|&gt;<span class="sloth-edge">⟧' in view


def test_the_tokens_are_those_that_prepare_makes(train: Any, shared_tokenizer: Any):
    preview = DatasetPreview(train, shared_tokenizer, show="tokens", ids=True, row=7)
    row = prepare(train, shared_tokenizer).dataset[6]
    view = preview._view()
    assert [f"<rt>{i}</rt>" for i in row["input_ids"]] == [
        f"<rt>{p.split('</rt>')[0]}</rt>" for p in view.split("<rt>")[1:]
    ]
    learnt = sum(label != -100 for label in row["labels"])
    assert f"{len(row['input_ids'])} tokens, {learnt} of them learnt" in view
    preview.ids = False
    assert "<rt>" not in preview._view() and 'title="id ' in preview._view()


def test_tokens_beyond_max_length_are_told(train: Any, shared_tokenizer: Any):
    view = DatasetPreview(train, shared_tokenizer, show="tokens", max_length=40)._view()
    assert "40 tokens" in view and "are beyond max_length and would be cut off" in view


def test_only_the_last_turn_or_everything_can_be_learnt(shared_tokenizer: Any):
    turns = [{"role": r, "content": c} for r, c in zip(("user", "assistant") * 2, "abcd", strict=True)]
    preview = DatasetPreview([{"messages": turns}], shared_tokenizer)
    counts = {}
    for preview.train_on in ("assistant", "last", "all"):
        preview.show = "conversation"
        badges = preview._view().count("learnt</span>")
        preview.show = "text"
        counts[preview.train_on] = (badges, preview._view().count("⟧") - 1)  # one stands in the legend
    assert counts == {"assistant": (2, 2), "last": (1, 1), "all": (4, 1)}


def test_the_template_is_changed_live_and_the_tokenizer_is_left_alone(
    front_end, find, train, shared_tokenizer
):
    own = shared_tokenizer.chat_template
    preview = DatasetPreview(train, shared_tokenizer, show="text")
    preview._ipython_display_()
    box = find(preview, "Template")
    front_end.update(box, index=list(box.options).index("zephyr"))
    assert "&lt;|assistant|&gt;" in preview._picture.value
    assert preview.as_code() == "prepare(data, tokenizer, chat_template='zephyr')"
    assert shared_tokenizer.chat_template == own


def test_paging_stepping_and_jumping(front_end, find, train):
    preview = DatasetPreview(train)
    preview._ipython_display_()
    front_end.click(find(preview, "Page ▸"))
    assert preview.row == 11 and "▶ 11" in preview._picture.value and ">20</th>" in preview._picture.value
    front_end.click(find(preview, "◂ Row"))
    assert preview.row == 10 and "▶ 10" in preview._picture.value
    front_end.update(find(preview, "Row"), value=120)
    assert "▶ 120" in preview._picture.value
    front_end.click(find(preview, "Page ▸"))
    assert preview.row == 120
    preview.row = 999
    assert "There is no row 999." in preview._picture.value


def test_finding_keeps_the_rows_own_numbers(front_end, find, train):
    preview = DatasetPreview(train)
    preview._ipython_display_()
    front_end.update(find(preview, "Find"), value="CAPITAL of")
    view = preview._picture.value
    places = [i + 1 for i, row in enumerate(train) if "capital of" in json.dumps(row).lower()]
    assert f"{len(places)} rows found in 120 of 120" in view and f"▶ {places[0]}" in view
    preview.find = "nowhere to be seen"
    assert "No row among the first 120 holds" in preview._picture.value
    preview.find = ""
    assert "120 rows; messages" in preview._picture.value


def test_columns_can_be_given_and_print_as_code(front_end, find, shared_tokenizer):
    rows = [{"frage": "q", "antwort_lang": "long", "kurz": "a"}]
    preview = DatasetPreview(rows, shared_tokenizer)
    preview._ipython_display_()
    assert "Can&#x27;t tell what to train on" in preview._picture.value
    for part, column in (("User", "frage"), ("Assistant", "kurz")):
        box = find(preview, part)
        front_end.update(box, index=list(box.options).index(column))
    assert preview.mapping == {"user": "frage", "assistant": "kurz"}
    assert preview.as_code() == "prepare(data, tokenizer, mapping={'user': 'frage', 'assistant': 'kurz'})"
    data = rows
    assert (
        eval(preview.as_code(), {"prepare": prepare, "data": data, "tokenizer": shared_tokenizer}).report.kept
        == 1
    )


def test_the_report_counts_the_first_rows_and_all_when_asked(
    front_end, find, train, shared_tokenizer, monkeypatch
):
    monkeypatch.setattr("sloth_nb_widgets.dataset_preview.SAMPLE", 50)
    preview = DatasetPreview(train, shared_tokenizer, show="report")
    preview._ipython_display_()
    assert "The first 50 rows" in preview._picture.value and "50 read, 50 kept" in preview._picture.value
    front_end.click(find(preview, "Count all rows"))
    assert "All 120 rows" in preview._picture.value and "120 read, 120 kept" in preview._picture.value
    assert "Tokens in a row, before cutting" in preview._picture.value


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\u202e\x00&amp;</mark>"


@pytest.mark.parametrize("show", ["conversation", "text", "tokens", "report"])
def test_hostile_text_stays_text(show: str, shared_tokenizer: Any):
    turns = [{"role": role, "content": HOSTILE} for role in ("user", "assistant")]
    rows = [{HOSTILE.replace("\0", ""): "x", "messages": turns}]
    preview = DatasetPreview(rows, shared_tokenizer, show=show, find="script")
    assert preview.widget is not None
    for html in (preview._view(), preview._snapshot()["text/html"], preview._status_html()):
        assert "<script" not in html.replace("<style", "") and "<img" not in html and "\x00" not in html
    assert "&lt;script&gt;" in preview._view()


def test_what_can_t_be_seen_is_written_out_in_tokens():
    assert visible(" a\n\t\u202e\x07") == "·a⏎⇥⟨U+202E⟩⟨U+0007⟩"
    assert visible("") == "…"


def test_cells_are_one_line_and_short():
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yo"}]
    assert short(turns) == "2 turns: hello"
    assert short("a\n\n  b") == "a b" and short(None) == "—"
    assert len(short("x" * 10_000)) == 90


def test_without_a_tokenizer_the_conversation_shows_and_the_rest_says_what_it_needs(train: Any):
    preview = DatasetPreview(train)
    for show in ("text", "tokens", "report"):
        preview.show = show
        assert "need" in preview._view() and "tokenizer" in preview._view()
    with pytest.raises(SlothError, match="tokenizer"):
        preview.report()


def test_a_row_that_can_t_be_read_says_so_and_the_others_show(shared_tokenizer: Any):
    rows = [pair("q", "a"), pair("q", ""), pair("q2", "a2")]
    preview = DatasetPreview(rows, shared_tokenizer, show="tokens", row=2)
    assert "column &#x27;answer&#x27; is empty" in preview._view()
    preview.row = 3
    assert "2 of them learnt" not in preview._view() and "of them learnt" in preview._view()


def test_a_long_file_is_opened_without_being_read(tmp_path: Path):
    path = tmp_path / "long.jsonl"
    line = json.dumps(pair("q" * 400, "a" * 400)) + "\n"
    path.write_text(line * 60_000, encoding="utf-8", newline="\n")
    preview = DatasetPreview(path)
    assert "about " in preview._view()
    assert preview.view.rows._read < 0.4 * path.stat().st_size
    assert preview.as_code() == f"prepare({str(path)!r}, tokenizer)"


def test_a_million_rows_send_no_more_than_a_page(front_end):
    import datasets
    import pyarrow

    table = pyarrow.table({"question": ["q"] * 1_000_000, "answer": ["a" * 200] * 1_000_000})
    preview = DatasetPreview(datasets.Dataset(table))
    preview._ipython_display_()
    preview.row = 987_654
    assert "▶ 987,654" in preview._picture.value
    assert max(front_end.sizes) < 60_000


def test_a_missing_file_and_a_misspelt_argument_are_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match="no file"):
        DatasetPreview(tmp_path / "no.jsonl")
    with pytest.raises(SlothError, match="shown"):
        DatasetPreview([pair("q", "a")], shown="text")


def test_the_text_form_is_complete(train: Any, shared_tokenizer: Any):
    preview = DatasetPreview(train, shared_tokenizer)
    assert "user: " in str(preview) and "prepare(data, tokenizer)" in str(preview)
    preview.show = "report"
    assert "120 read, 120 kept" in str(preview)
