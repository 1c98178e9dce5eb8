"""``python -m graphpress.tools.bench.view_fluency``: how fluent the page of ``graphpress view`` is in a real browser.

A made-up transformer of some 2,000 operators, compiled by nothing, drawn alone and beside itself. In headless Chromium
a script on the page does what a user does (load, open and close all modules and one, search, pick, pan) and takes the
time until the frame behind it is painted.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import onnx_ir as ir

import graphpress as gp
from graphpress.errors import Unsupported

NODES = 2000
SECONDS = 300  # for a page, on a slow machine
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1400,900",
    "--enable-logging=stderr", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic",
)  # fmt: skip
_BLOCK = ("attn/q", "attn/k", "attn/v", "attn/score", "attn/mix", "attn/out", "mlp/gate", "mlp/up", "mlp/down")
_CHAIN = 5  # operators a part of a block
STEPS = {
    "load": "load, until drawn", "expand": "open all modules", "pan": "pan with all open, a frame (median)",
    "pan_slow": "likewise, the slowest of 20", "search": "search among all", "pick": "pick what was found",
    "collapse": "close all modules", "open": "open a module", "close": "close it",
}  # fmt: skip


def browser() -> str:
    """The path of Chromium.

    Raises:
        Unsupported: There is none.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        fix = "Install it (Debian: apt-get install chromium)."
        raise Unsupported("needs Chromium, which is not installed", where="view_fluency", fix=fix)
    return found


def transformer(nodes: int) -> ir.Model:
    """Blocks of modules with a residual stream, of at least so many operators."""
    first = value = ir.Value(name="x", shape=ir.Shape([1, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    made: list[ir.Node] = []

    def add(op: str, inputs: Sequence[ir.Value], name: str) -> ir.Value:
        made.append(ir.Node("", op, inputs, name=name))
        out = made[-1].outputs[0]
        out.name, out.shape, out.type = f"v{len(made)}", first.shape, first.type
        return out

    block = 0
    while len(made) < nodes:
        for side in ("attn", "mlp"):
            ends = []
            for part in (p for p in _BLOCK if p.startswith(side)):
                end = value
                for step in range(_CHAIN):
                    end = add(("Relu", "Sigmoid", "Tanh")[step % 3], [end], f"/layers.{block}/{part}/op{step}")
                ends.append(end)
            total = ends[0]
            for i, end in enumerate(ends[1:]):
                total = add("Mul", [total, end], f"/layers.{block}/{side}/join{i}")
            value = add("Add", [value, total], f"/layers.{block}/{side}_add")
        block += 1
    graph = ir.Graph([first], [value], nodes=made, opset_imports={"": 21}, name="transformer")
    return ir.Model(graph, ir_version=10)


def measure(page: str, seconds: float = SECONDS) -> dict[str, float]:
    """Milliseconds of each of ``STEPS``, on a page with the driver in it.

    Raises:
        Unsupported: There is no Chromium, or it gave nothing.
    """
    driver = resources.files("graphpress.tools.bench").joinpath("view_driver.js").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="graphpress-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "view.html")
        path.write_text(page.replace("</body>", f'<script type="module">\n{driver}</script></body>'), encoding="utf-8")
        command = [browser(), *_FLAGS, f"--user-data-dir={folder}/profile", path.as_uri()]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as chromium:
            watch = threading.Timer(seconds, chromium.kill)
            watch.start()
            try:
                assert chromium.stderr is not None
                said = (re.search(r"fluency (\{.*\}) end|(Uncaught .*)", line) for line in chromium.stderr)
                found = next((m for m in said if m), None)
            finally:
                watch.cancel()
                chromium.kill()
    if found is None or found[1] is None:
        what = (
            f"the browser gave no figures within {seconds:.0f} s" if found is None else f"the page failed: {found[2]}"
        )
        raise Unsupported(what, where="view_fluency")
    return dict(json.loads(found[1].replace('\\"', '"')))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.view_fluency", description="Of the view page.")
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    model = transformer(args.nodes)
    count = len(list(model.graph))
    pages = {f"{count:,} operators": gp.view(model), f"{count:,} before and after": gp.view(model, model.clone())}
    try:
        found = {name: measure(page) for name, page in pages.items()}
    except Unsupported as e:
        print(f"view_fluency: {e}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=1) if args.json else render(found))
    return 0


def render(found: Mapping[str, Mapping[str, float]]) -> str:
    """A row a step, a column a page."""
    rows = [(words, *(f"{figures[key]:.0f}" for figures in found.values())) for key, words in STEPS.items()]
    head = [("milliseconds", *found), ("---",) * (1 + len(found))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*head, *rows])


if __name__ == "__main__":
    sys.exit(main())
