"""The page is one file that needs nothing else, says what it is told and nothing more, and fits a phone."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from graphpress.contracts import PassReport, Skip
from graphpress.job.gate import GateResult, OutputCheck
from graphpress.report import charts, page
from graphpress.report.report import Report, SiteRow

HOSTILE = "\"><img src=x onerror=alert(1)><script>alert('{{7*7}}')</script>&amp;'"
LONG = "model/" + "a_rather_long_scope_name.without_any_space/" * 6 + "Conv"
VOID = {"meta", "rect", "line", "br"}


def report(name: str) -> Report:
    site = SiteRow(name, "Conv", "weight[1] int8", name, 10, "integer", name, name, 5.0, 0.5, 10, 20.0)
    bare = SiteRow(f"{name}2", "Conv", unmeasured="its branch did not run")
    histogram = {"counts": [1, 0, 5], "start": -1.0, "width": 1.0, "min": -0.5, "max": 1.9, "lo": -0.4, "hi": 1.5}
    return Report(
        model=name, recipe=name, target=name, passes=[PassReport(name, 1, [Skip(name, name)], [Skip(name, name)])],
        gate=GateResult([OutputCheck(name, 20.0, 0.99, 0.1, 1.0)], 8, [name], [(name, 3.0)], name),
        metric={"before": 90.0, "after": 89.5}, reverted=[name], sites=[site, bare],
        histograms={f"{name}[0]": histogram},
        ops={"before": {name: 1}, "after": {name: 2}}, latency={"before": 1.0, "after": 0.5, "ratio": 0.5},
        size={"file_before": 10, "file_after": 5}, seconds={name: 1.0}, audit={"left_out": name},
        data={"calibration": 8, "held_out": 8},
    )  # fmt: skip


class Reader(HTMLParser):
    """Every tag and attribute; open tags must be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_nothing_is_loaded_from_anywhere() -> None:
    text = page.render(report("conv"))
    found = read(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(found.tags)
    assert not [k for k, _ in found.attributes if k in ("src", "href", "srcset", "action") or k.startswith("on")]
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)


def test_hostile_names_stay_text() -> None:
    """The same tags and attribute names as with a harmless name; nothing of it is evaluated."""
    text = page.render(report(HOSTILE))
    wild, tame = read(text), read(page.render(report("c" * len(HOSTILE))))
    assert wild.tags == tame.tags
    assert [k for k, _ in wild.attributes] == [k for k, _ in tame.attributes]
    assert html.escape("<script>") in text
    assert "{{7*7}}" in text


def test_an_empty_report_renders() -> None:
    assert "not checked" in page.render(Report())


@pytest.mark.parametrize("counts", [[], [0, 0], [3]])
def test_flat_histograms_draw(counts: list[int]) -> None:
    data = {"counts": counts, "start": 0.0, "width": 0.0, "min": 0.0, "max": 0.0, "lo": 0.0, "hi": 0.0}
    read(page.render(Report(histograms={"a": data})))


def test_the_marks_stand_where_the_range_ends() -> None:
    drawn = charts.histogram("a", report("a").histograms["a[0]"])
    assert drawn["marks"] == pytest.approx([300 * 0.6 / 3, 300 * 2.5 / 3])
    assert [b["x"] for b in drawn["bars"]] == [0, 200]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=2000",
]  # fmt: skip
# The page in a frame as wide as a phone; the outer page writes down what the inner one measures.
FRAME = """<body><iframe id="f" style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe><script>
document.getElementById("f").onload = function () {{
  const inner = this.contentDocument, root = inner.documentElement;
  const wide = [...inner.querySelectorAll("section, .card, h1, .cards, b, .bar")]
    .filter(e => e.getBoundingClientRect().right > root.clientWidth + 0.5);
  const alerts = inner.querySelectorAll("script, img").length;
  document.body.innerHTML = "measured " + [root.scrollWidth, root.clientWidth, wide.length, alerts].join(" ");
}};</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
@pytest.mark.parametrize("name", ["conv", LONG, HOSTILE], ids=["short", "long", "hostile"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen_in_a_real_browser(tmp_path: Path, name: str, width: int) -> None:
    outer = tmp_path / "frame.html"
    outer.write_text(FRAME.format(width=width, page=html.escape(page.render(report(name)))))
    run = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", outer.as_uri()]
    dom = subprocess.run(run, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"measured (\d+) (\d+) (\d+) (\d+)", dom)
    assert found, dom[-500:]
    scroll, client, too_wide, loaded = map(int, found.groups())
    assert width - 20 < client <= width  # a scroll bar may take its part
    assert scroll <= client
    assert (too_wide, loaded) == (0, 0)
