"""The one place that escapes."""

import html
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sloth_nb_widgets.html import Markup, element, escape, join, numbers_table, stylesheet

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'


class Seen(HTMLParser):
    """Which elements and texts a browser would make of it."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_hostile_text_stays_text():
    seen = Seen(element("p", HOSTILE, title=HOSTILE))
    assert [tag for tag, _ in seen.tags] == ["p"]
    assert seen.text == HOSTILE
    assert seen.tags[0][1] == {"title": HOSTILE}


@given(st.text(), st.text())
def test_any_text_reads_the_same_and_makes_no_element(text, value):
    seen = Seen(element("p", text, title=value))
    assert len(seen.tags) == 1 and seen.tags[0][0] == "p"
    sendable = html.unescape(escape(text))
    assert seen.text.replace("\r\n", "\n").replace("\r", "\n") == sendable
    sendable.encode("utf-8")


def test_control_characters_and_lone_surrogates_are_replaced():
    assert escape("a\x00b\ud800c\td\n") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c\td\n"


def test_markup_passes_unchanged_and_lists_are_flattened():
    inner = element("b", "x")
    assert element("p", [inner, [None, "<"]], 3) == "<p><b>x</b>&lt;3</p>"
    assert isinstance(join(["a", inner], ", "), Markup)


def test_attributes_follow_python_names():
    assert element("p", class_="a", aria_live="polite", hidden=True, title=None, lang=False) == (
        '<p class="a" aria-live="polite" hidden></p>'
    )
    assert element("br") == "<br>"


@pytest.mark.parametrize("name", ["script", "SCRIPT", "iframe", "style", "p onclick", "foreignObject"])
def test_an_element_that_could_run_code_is_refused(name):
    with pytest.raises(ValueError, match="not an element"):
        element(name)


@pytest.mark.parametrize("attribute", ["onclick", "onError", "on_load", "a b"])
def test_an_attribute_that_could_run_code_is_refused(attribute):
    with pytest.raises(ValueError, match="not an attribute"):
        element("p", **{attribute: "x"})


@pytest.mark.parametrize(
    "link", ["javascript:alert(1)", " JavaScript:alert(1)", "data:text/html,x", "vbscript:x"]
)
def test_a_link_that_could_run_code_is_refused(link):
    with pytest.raises(ValueError, match="not a link"):
        element("a", "x", href=link)


@pytest.mark.parametrize(
    "link", ["https://example.org/a?b=c", "#part", "./run.jsonl", "mailto:a@example.org"]
)
def test_ordinary_links_pass(link):
    assert Seen(element("a", "x", href=link)).tags[0][1] == {"href": link}


def test_a_table_names_its_columns_and_rows():
    table = numbers_table("Loss", ["step", "train"], [["1", "<b>"]])
    assert '<th scope="col">train</th>' in table and '<th scope="row">1</th>' in table
    assert "<td>&lt;b&gt;</td>" in table


def test_style_sheets_are_whole_after_shortening():
    sheet = stylesheet("colours", "theme", "plot")
    assert sheet.count("{") == sheet.count("}") > 40
    assert "/*" not in sheet
    assert ".sloth-panel button:focus-visible" in sheet, "a space before a pseudo-class means a descendant"
    assert len(sheet) < 12_000
