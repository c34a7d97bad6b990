import html.parser
import json
import re

import numpy as np

from pmjax.reporting import images
from pmjax.reporting.html import MetricRow, MetricTable, Page, TextTable, write, write_report
from pmjax.reporting.images import Figure

HOSTILE = """"'><script>alert(1)</script><img src=x onerror=alert(1)><!-- $\\frac{ {title} -->"""


class Parsed(html.parser.HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.attributes, self.text = set(), [], []
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def page_with(tmp_path, text):
    row = {"stage": text, "step": 1, "values": {text: 1.0, "b": None}}
    (tmp_path / "history.jsonl").write_text(json.dumps(row) + "\n")
    images.save_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    return Parsed(
        write_report(
            tmp_path,
            title=text,
            config={text: {"inner": text}, "method": text, "folder": tmp_path},
            tables=[MetricTable(text, text, [MetricRow(text, 1.5, note=text)], bars=True)],
            figures=[Figure(text, text, tmp_path / "a.png")],
        )
    )


def test_hostile_names_are_shown_and_not_run(tmp_path):
    page = page_with(tmp_path, HOSTILE)
    assert not page.tags & {"script", "iframe", "object", "link", "base", "form"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert {value for name, value in page.attributes if name == "alt"} == {HOSTILE}
    shown = [text for text in page.text if "alert(1)" in text]
    assert len(shown) >= 11  # title, heading, facts, metrics, figure, stage, curve, config


def test_the_page_needs_nothing_but_itself(tmp_path):
    page = page_with(tmp_path, "plain")
    assert "://" not in page.source and "@import" not in page.source
    assert all(
        value.startswith("data:image/png;base64,") for n, value in page.attributes if n == "src"
    )
    assert all(value.startswith("#") for n, value in page.attributes if n.endswith("href"))
    assert set(re.findall(r"url\((.)", page.source)) <= {"#"}
    policy = [value for name, value in page.attributes if name == "content"][0]
    assert policy.startswith("default-src 'none'")


def metrics_page(tmp_path, *tables):
    return Parsed(write_report(tmp_path, title="t", config={}, tables=tables, figures=[]))


def test_the_page_shows_metrics_with_their_meaning_and_spread(tmp_path):
    rows = [
        MetricRow("floor", 12.25, 0.1234, "real against real"),
        MetricRow("gmm", 1234.56, 123.4),
        MetricRow("b", 7),
    ]
    page = metrics_page(tmp_path, MetricTable("Distance (x)", "Lower is better.", rows))
    text = " ".join(page.text)
    for part in ("Distance (x)", "Lower is better.", "real against real", "12.25 ± 0.12"):
        assert part in text
    assert "1235 ± 123" in text and "7" in page.text


def test_the_longest_bar_is_the_largest_value_that_compares(tmp_path):
    rows = [
        MetricRow("floor", 0.1),
        MetricRow("gmm", 0.4),
        MetricRow("ratio", 4.0, bar=False),
        MetricRow("negative", -0.1),
    ]
    page = metrics_page(tmp_path, MetricTable("w2", "", rows, bars=True))
    styles = [value for name, value in page.attributes if name == "style"]
    assert styles == ["width:25.0%", "width:100.0%", "width:0.0%", "width:0.0%"]


def test_bars_of_a_table_without_positive_values_are_empty(tmp_path):
    table = MetricTable("w2", "", [MetricRow("a", 0.0), MetricRow("b", -1.0)], bars=True)
    page = metrics_page(tmp_path, table, MetricTable("none", "", []))
    assert [v for name, v in page.attributes if name == "style"] == ["width:0.0%"] * 2


def test_a_table_of_text_has_its_labels_numbers_and_notes(tmp_path):
    table = TextTable(HOSTILE, ["method"], ["<MSE>"], [(["pm"], ["0.1 ± 0.01"])], ["a note"])
    page = Page(
        "t", summary="One seed, 0.", command="a & b", tables=[table], missing=["pm, seed 1"]
    )
    parsed = Parsed(write(tmp_path / "report.html", page))
    text = [part.strip() for part in parsed.text if part.strip()]
    assert text[text.index("One seed, 0.") :] == [
        "One seed, 0.", "a & b", HOSTILE, "method", "<MSE>", "pm", "0.1 ± 0.01", "a note",
        "Missing", "pm, seed 1",
    ]  # fmt: skip
    assert "script" not in parsed.tags


def test_the_page_of_an_empty_run_can_be_written(tmp_path):
    path = write_report(tmp_path, title="none", config={}, tables=[], figures=[])
    assert path == tmp_path / "report.html" and "none" in path.read_text()
