"""Who lays the graph out and draws it: dagre and the drawing of Netron, as the installed package has them.

Netron (MIT, a release every few weeks, no dependencies of its own) is the viewer that people know ONNX graphs from, and
its two files make a page without a server or a network.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from graphpress.errors import Unsupported

_FILES = {"dagre": ("layout",), "grapher": ("Graph", "Node", "Edge")}  # module -> what the page takes of it


def scripts() -> dict[str, str]:
    """The modules ``dagre`` and ``grapher`` as text.

    Raises:
        Unsupported: Netron is not installed, or is of a version that has them no longer.
    """
    fix = "Install it with: pip install 'graphpress[view]'."
    spec = importlib.util.find_spec("netron")  # found, not imported: that would load its server
    if spec is None or not spec.submodule_search_locations:
        raise Unsupported("the view is drawn by the package netron, which is not installed", where="view", fix=fix)
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = {}
    for stem, names in _FILES.items():
        path = folder / f"{stem}.js"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        exports = text[text.rfind("export ") :]
        if not text or not all(name in exports for name in names):
            what = f"netron {version()} has no {path.name} that gives {', '.join(names)}"
            raise Unsupported(what, where="view", fix=fix)
        found[stem] = text
    return found


def version() -> str:
    """Of the installed Netron; "" where there is none."""
    try:
        return importlib.metadata.version("netron")
    except importlib.metadata.PackageNotFoundError:
        return ""


def available() -> bool:
    """Whether `scripts` would give them."""
    try:
        scripts()
    except Unsupported:
        return False
    return True
