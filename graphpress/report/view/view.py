"""``graphpress view``: one page, without a network, of a model and the one that it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import onnx_ir as ir

from graphpress.job import bundle
from graphpress.job.models import ModelLike, as_model
from graphpress.keys import ORIGIN
from graphpress.report.report import Report, finite
from graphpress.report.view import about, drawn, library, modules

_UNKNOWN = "No report of this model: kernels, SQNR and times are not known. `graphpress compile --out DIR` writes one."
_OTHER = "The report beside it is of another file, and was left out: kernels, SQNR and times are not known."
_CODE = ("load.js", "details.js", "tree.js", "colours.js", "level.js", "pane.js", "view.js")  # in this order: one scope
_ROW = ("verdict", "kernel", "reason", "skip", "microseconds", "share", "sqnr", "unmeasured", "weights", "macs")


def view(
    after: ModelLike,
    before: ModelLike | None = None,
    *,
    report: Report | None = None,
    out: str | Path | None = None,
) -> str:
    """The page: the graph by module, colours by kernel, bits, SQNR or time, what is known of each node at a click.

    Args:
        after: A model or the path of an ONNX file.
        before: The one it was made from: shown beside it, matched by site.
        report: What a compilation said of it; of a file, the ``report.json`` in its folder.
        out: Where to write the page, beside returning it.

    Raises:
        Unsupported: The extra ``view`` is not installed.
        InvalidModel: Anything wrong with a file.
        BadRequest: What is given is no model, or ``out`` cannot be written.
    """
    scripts = library.scripts()
    if out is not None:
        given = (Path(m) if isinstance(m, str | Path) else None for m in (after, before))
        bundle.spare(Path(out), *given)
    told, note = _beside(after) if report is None else (report.to_json(), "")
    rows = {row["node"]: row for row in told.get("sites", ())}
    new, old = as_model(after), None if before is None else as_model(before)
    title = Path(after).name if isinstance(after, str | Path) else new.graph.name or "model"
    earlier = None if old is None else modules.paths(old)
    sides = {"after": _side(new, title, modules.paths(new, earlier), rows, told)}
    if old is not None and earlier is not None:
        name = Path(before).name if isinstance(before, str | Path) else old.graph.name or "model"
        sides["before"] = _side(old, name, earlier, rows, {})
        _match(sides["after"], sides["before"])
    data = {"title": title, "notes": [note] if note else [], "sides": sides, "about": _head(told)}
    page = _page(title, data, scripts)
    if out is not None:
        with bundle.disk_errors(Path(out)):
            Path(out).write_text(page, encoding="utf-8")
    return page


def _beside(after: ModelLike) -> tuple[dict[str, Any], str]:
    """The report in a model's folder if it is of that file, and what to say where there is none."""
    if not isinstance(after, str | Path):
        return {}, _UNKNOWN
    path = Path(after)
    try:
        manifest, report = (json.loads((path.parent / n).read_text("utf-8")) for n in (bundle.MANIFEST, "report.json"))
        known = manifest["files"][path.name]["sha256"]
        sites = {row["node"]: row for row in report["sites"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}, _UNKNOWN
    with path.open("rb") as file:
        same = hashlib.file_digest(file, "sha256").hexdigest() == known
    return (report, "") if same and sites else ({}, _OTHER)


def _head(told: Mapping[str, Any]) -> str:
    words = [f"{key} {told[key]}" for key in ("recipe", "target") if told.get(key)]
    return " · ".join(words)


def _side(
    model: ir.Model,
    name: str,
    path: Mapping[str, modules.Path],
    rows: Mapping[str, Mapping[str, Any]],
    told: Mapping[str, Any],
) -> dict[str, Any]:
    """One model as the page takes it: nodes in the order of the graph, edges by their places."""
    found = drawn.drawing(model)
    seen: dict[str, dict[str, Any]] = told.get("histograms") or {}
    nodes = []
    for box in found.boxes:
        said: dict[str, Any] = {"name": box.name, "op": box.op, "path": [], "key": box.name}
        if box.node is not None:
            row = rows.get(box.name, {})
            said |= {"path": list(path[box.name]), **about.node(box.node)}
            said |= {k: row[k] for k in _ROW if row.get(k) or (k == "sqnr" and row.get(k) is not None)}
            said["seen"] = [{"edge": e, **h} for e, h in seen.items() if e.startswith(f"{box.name}[")]
            said["key"] = box.node.metadata_props.get(ORIGIN) or box.name
        nodes.append(said)
    return {"name": name, "nodes": nodes, "edges": found.edges}


def _match(after: dict[str, Any], before: dict[str, Any]) -> None:
    """Note on each node the places of its counterparts: of one name, or made for it."""
    old = {(n["op"] if n["op"] in ("input", "output") else "", n["name"]): i for i, n in enumerate(before["nodes"])}
    for node in before["nodes"]:
        node["twins"] = []
    for at, node in enumerate(after["nodes"]):
        kind = node["op"] if node["op"] in ("input", "output") else ""
        twin = old.get((kind, node["name"]), old.get((kind, node["key"])))
        node["twins"] = [] if twin is None else [twin]
        if twin is not None:
            twins = before["nodes"][twin]["twins"]
            twins.insert(0, at) if node["name"] == before["nodes"][twin]["name"] else twins.append(at)


def _page(title: str, data: Mapping[str, Any], scripts: Mapping[str, str]) -> str:
    folder = resources.files("graphpress.report.view").joinpath("templates")
    files = ("view.html", "view.css", *_CODE)
    page, style, *code = (folder.joinpath(name).read_text(encoding="utf-8") for name in files)
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(page)
    return template.render(
        title=title, data=_inert(data), library=_inert(scripts), style=style, script="\n".join(code),
        credit=f"Layout and drawing: Netron {library.version()} (MIT)",
    )  # fmt: skip


def _inert(data: Any) -> str:
    """JSON that ends no script, whatever names stand in it."""
    plain = json.dumps(finite(data), ensure_ascii=True, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
