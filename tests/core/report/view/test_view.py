"""The page of the graph: one file, harmless whatever names stand in the model, matched by site, usable in a browser."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress.errors import BadRequest, Unsupported
from graphpress.keys import ORIGIN
from graphpress.report.report import Report, SiteRow
from graphpress.report.view import library
from graphpress.tools.bench import view_fluency
from tests import kit

HOSTILE = "</script><script>alert(1)</script>"
needs_netron = pytest.mark.skipif(not library.available(), reason="netron, of the extra `view`, is not installed")


def model() -> ir.Model:
    made = kit.parse(
        """g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}, float[2,2] v = {1, 2, 3, 5}> {
            a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) y = Add(c, a)
        }"""
    )
    for node, name in zip(made.graph, ("/one/fc", "/one/relu", "/two/fc", "add"), strict=True):
        node.name = name
    return made


def data(text: str) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text)
    assert found
    return json.loads(found[1])


@needs_netron
def test_hostile_names_end_no_script() -> None:
    made = model()
    next(iter(made.graph)).name = HOSTILE
    made.graph.name = HOSTILE
    made.graph.outputs[0].name = HOSTILE
    text = gp.view(made)
    assert text.count("<script") == text.count("</script>") == gp.view(model()).count("<script")
    assert "<script>alert" not in text
    assert any(n["name"] == HOSTILE for n in data(text)["sides"]["after"]["nodes"])


@needs_netron
def test_nothing_is_loaded_from_anywhere() -> None:
    text = re.sub(r'<script id="library".*?</script>', "", gp.view(model()))
    assert not re.findall(r"<(?:link|img|iframe)|\bsrc=|@import|url\(", text)
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\"'` ]+", text)) == {"http://www.w3.org/2000/svg"}


@needs_netron
def test_before_and_after_are_matched_by_site() -> None:
    before, after = model(), model()
    made = ir.Node("", "Identity", [after.graph.node(0).outputs[0]], name="made")
    made.metadata_props[ORIGIN] = "/two/fc"
    after.graph.append(made)
    after.graph.node("add").name = "other"
    sides = data(gp.view(after, before))["sides"]
    names = {side: [n["name"] for n in sides[side]["nodes"]] for side in sides}
    twins = {n["name"]: [names["before"][i] for i in n["twins"]] for n in sides["after"]["nodes"]}
    assert twins == {
        "x": ["x"], "/one/fc": ["/one/fc"], "/one/relu": ["/one/relu"], "/two/fc": ["/two/fc"], "other": [],
        "made": ["/two/fc"], "y": ["y"],
    }  # fmt: skip
    back = {n["name"]: [names["after"][i] for i in n["twins"]] for n in sides["before"]["nodes"]}
    assert back["/two/fc"] == ["/two/fc", "made"]
    assert back["add"] == []


def compiled(folder: Path) -> Path:
    """A folder as `graphpress compile` writes it, with one site told of."""
    path = folder / "model.onnx"
    gp.save(model(), path)
    report = Report(recipe="w8a8", sites=[SiteRow("/one/fc", "MatMul", kernel="QGemm", verdict="integer", sqnr=21.5)])
    (folder / "report.json").write_text(json.dumps(report.to_json()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"files": {path.name: {"sha256": digest}}}))
    return path


@needs_netron
def test_the_report_beside_a_file_is_taken_if_it_is_of_that_file(tmp_path: Path) -> None:
    path = compiled(tmp_path)
    found = data(gp.view(path))
    told = {n["name"]: (n.get("kernel"), n.get("sqnr")) for n in found["sides"]["after"]["nodes"]}
    assert told["/one/fc"] == ("QGemm", 21.5)
    assert (told["add"], found["notes"], found["about"]) == ((None, None), [], "recipe w8a8")
    other = model()
    next(iter(other.graph)).op_type = "Add"
    gp.save(other, path)
    found = data(gp.view(path))
    assert not any("kernel" in n for n in found["sides"]["after"]["nodes"])
    assert "of another file" in found["notes"][0]
    (tmp_path / "manifest.json").write_text("[]")
    assert "No report" in data(gp.view(path))["notes"][0]


def test_without_the_extra_one_sentence_says_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"netron, which is not installed\. Install it with: pip install 'graphp"):
        gp.view(model(), out=tmp_path / "view.html")
    assert list(tmp_path.iterdir()) == []


def test_a_netron_without_the_files_is_told_from_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netron").mkdir()
    (tmp_path / "netron" / "__init__.py").touch()
    (tmp_path / "netron" / "dagre.js").write_text("export const { other } = dagre;")
    found = importlib.util.spec_from_file_location(
        "netron", tmp_path / "netron" / "__init__.py", submodule_search_locations=[str(tmp_path / "netron")]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(Unsupported, match=r"has no dagre\.js that gives layout"):
        library.scripts()


@needs_netron
def test_the_page_never_replaces_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    gp.save(model(), path)
    with pytest.raises(BadRequest, match="is read from there"):
        gp.view(path, out=path)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1200,800",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=20000",
]  # fmt: skip
# What drivers share; alert(1) of a name would be noted too.
START = """<script>window.alerted = 0; window.alert = () => { window.alerted++; };</script>
<script type="module">
const wait = async (what) => { for (let i = 0; i < 200 && !what(); i++) await new Promise((d) => setTimeout(d, 25)); };
const $ = (css) => document.querySelector(css), $$ = (css) => [...document.querySelectorAll(css)];
const texts = (css) => $$(css).map((e) => e.textContent);
const steps = {};
await wait(() => document.body.dataset.ready);
"""
END = """
const done = document.createElement("output");
done.textContent = "steps " + JSON.stringify(steps) + " end";
document.body.replaceChildren(done);
</script></body>"""
# What a user does, and what is to be seen then.
DRIVER = """
steps.boxes = $$(".pane:last-child .node-border").length;
$("#collapse").click();
await wait(() => !document.body.classList.contains("busy"));
steps.closed = texts(".pane:last-child .group > .op text");
$(".pane:last-child .group > .op").dispatchEvent(new MouseEvent("click", { bubbles: true }));
await wait(() => texts(".pane:last-child .group > .op text")[0].startsWith("▾"));
await wait(() => !$("#details").hidden);
steps.opened = [texts(".pane:first-child .group > .op text")[0], texts(".pane:last-child .group > .op text")[0]];
steps.module = $("#details h3").textContent;
$("#search").value = "script";
$("#search").dispatchEvent(new Event("input"));
steps.found = texts("#found li b");
$("#found li:last-child").click();
await wait(() => $("#details h3")?.textContent !== steps.module);
steps.picked = $("#details h3").textContent;
steps.details = texts("#details dd");
steps.twin = texts("#details .go")[0];
steps.bars = $$("#details svg rect").length;
steps.marked = [$$(".select").length, $$(".twin").length];
$("#colour").value = "SQNR";
$("#colour").dispatchEvent(new Event("change"));
steps.fill = $(".pane:last-child .select .op").style.getPropertyValue("--fill");
steps.colours = texts("#colour option:not(:disabled)");
steps.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
steps.alerted = window.alerted;
"""
# All modules open, then far down by the wheel, then to the last operator by the search.
FAR = """
$("#expand").click();
await wait(() => document.body.classList.contains("busy"));
await wait(() => !document.body.classList.contains("busy"));
const pane = $(".pane"), box = () => $(".stage").getBoundingClientRect();
const drawn = () => $$(".pane .op").filter((e) => ["Relu", "Sigmoid", "Tanh"].includes(e.textContent.split("/")[0]));
const within = ({ top, bottom }) => top > 0 && bottom < innerHeight;
const inSight = () => drawn().filter((e) => within(e.getBoundingClientRect())).length;
await wait(() => inSight());
steps.first = [drawn().length, inSight()];
for (let i = 0; i < 200 && box().bottom > innerHeight; i++) {
  pane.dispatchEvent(new WheelEvent("wheel", { deltaX: 0, deltaY: 300, bubbles: true, cancelable: true }));
}
await wait(() => inSight());
steps.last = inSight();
$("#search").value = "/mlp/down/op4";
$("#search").dispatchEvent(new Event("input"));
$$("#found .hit").at(-1).click();
await wait(() => $(".select"));
const at = $(".select").getBoundingClientRect(), frame = pane.getBoundingClientRect();
steps.off = Math.abs(at.left + at.right - frame.left - frame.right) / 2;
steps.near = $$(".edge-path.near").length;
$("#collapse").click();
await wait(() => document.body.classList.contains("busy"));
await wait(() => !document.body.classList.contains("busy"));
$(".pane .group > .op").dispatchEvent(new MouseEvent("click", { bubbles: true }));
await wait(() => $("#details button:not(.close)")?.textContent === "Close");
steps.picked = $$(".select").length;
$("#collapse").click();
await wait(() => !$(".pane .room"));
$("#details button:not(.close)").click();
await wait(() => $(".pane .room"));
steps.again = $$(".pane .room").length;
"""
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


def in_browser(text: str, driver: str, folder: Path) -> dict[str, Any]:
    """What a driver notes of a page in ``steps``."""
    page = folder / "view.html"
    page.write_text(text.replace("</body>", START + driver + END), encoding="utf-8")
    run = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri()]
    dom = subprocess.run(run, capture_output=True, text=True, timeout=90).stdout
    found = re.search(r"<output>steps (\{.*\}) end", dom, re.S)
    assert found, dom[-800:]
    steps: dict[str, Any] = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return steps


@pytest.mark.slow
@needs_netron
@needs_chromium
def test_what_is_out_of_sight_is_drawn_when_it_comes_into_sight(tmp_path: Path) -> None:
    model = view_fluency.transformer(500)
    kinds = sum(n.op_type in ("Relu", "Sigmoid", "Tanh") for n in model.graph)
    steps = in_browser(gp.view(model), FAR, tmp_path)
    assert 0 < steps["first"][1] <= steps["first"][0] < kinds / 2
    assert steps["last"] > 0
    assert steps["off"] < 2  # pixels from the middle
    assert steps["near"] > 0
    assert (steps["picked"], steps["again"]) == (1, 1)  # closed with all others, and opened from beside the page


@pytest.mark.slow
@needs_netron
@needs_chromium
def test_a_user_opens_searches_and_reads_in_a_real_browser(tmp_path: Path) -> None:
    before, after = model(), model()
    for made in (before, after):
        made.graph.node("/two/fc").name = f"/two/{HOSTILE.replace('/', ' ')}"
    site = SiteRow(str(after.graph.node(2).name), "MatMul", kernel="QGemm", verdict="integer", sqnr=12.5, reason="<b>")
    steps = in_browser(gp.view(after, before, report=Report(sites=[site])), DRIVER, tmp_path)
    assert steps["alerted"] == 0
    assert steps["closed"] == ["▸ one"]
    assert steps["opened"] == ["▾ one", "▾ one"]  # in both
    assert (steps["module"], steps["found"]) == ("one", ["MatMul", "MatMul"])
    assert steps["picked"] == site.node
    assert {"integer, kernel QGemm", "<b>", "12.5 dB"} <= set(steps["details"])
    assert steps["twin"] == f"MatMul: {site.node}"
    assert steps["bars"] > 0
    assert steps["marked"] == [1, 1]
    assert steps["fill"].startswith("#")
    assert steps["colours"] == ["kernel", "bits", "SQNR", "change"]
    assert steps["wide"] <= 0
