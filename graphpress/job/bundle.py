"""The output folder of a compilation: model, report, recipe, manifest; all of it or nothing."""

from __future__ import annotations

import datetime
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphpress import interrupts
from graphpress.errors import BadRequest
from graphpress.recipe import Recipe
from graphpress.report.report import Report, finite

MANIFEST = "manifest.json"
_REFUSED = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EROFS, errno.ENAMETOOLONG, errno.ENOENT)
_PACKAGES = ("graphpress", "numpy", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "torch")


@contextmanager
def claim(folder: Path) -> Iterator[Path]:
    """Hold ``folder`` for one compilation; gives an empty folder beside it that `publish` puts in its place.

    Raises:
        BadRequest: The folder holds something else, another process writes it, or the disk refuses.
    """
    folder = folder.absolute()
    _check(folder)
    undo = ExitStack()
    try:
        with interrupts.held(), disk_errors(folder):
            draft = _begin(folder, undo)
        with disk_errors(folder):
            yield draft
    finally:
        with interrupts.held():
            undo.close()


def spare(out: Path, *given: Path | None) -> None:
    """Refuse to write over what is read.

    Args:
        out: The file to be written, or the folder to be replaced.
        given: What is read; None, and what does not exist, is passed over.

    Raises:
        BadRequest: One of them is the output, or lies in it.
    """
    written = out.resolve()
    for path in given:
        if path is not None and path.exists() and written in (path.resolve(), *path.resolve().parents):
            raise BadRequest(f"{path} is read from there", where=f"--out {out}", fix="Choose another --out.")


def _begin(folder: Path, undo: ExitStack) -> Path:
    """Make the folders above, the lock and the draft; ``undo`` takes back each of them."""
    for parent in reversed([p for p in (folder.parent, *folder.parent.parents) if not p.exists()]):
        parent.mkdir(exist_ok=True)
        undo.callback(_remove_empty, parent)
    lock = folder.parent / f".{folder.name}.lock"
    _lock(lock, folder)
    undo.callback(lock.unlink, missing_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    undo.callback(shutil.rmtree, draft, ignore_errors=True)
    return draft


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it holds something by now
        folder.rmdir()


def publish(draft: Path, folder: Path) -> None:
    """Put the finished draft in the place of ``folder`` by renaming."""
    folder = folder.absolute()
    old = draft.with_name(draft.name + ".old")
    with interrupts.held():
        draft.chmod(0o755)
        if folder.exists():
            folder.rename(old)
        try:
            draft.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


def write(
    draft: Path,
    model: ir.Model | None,
    report: Report,
    recipe: Recipe,
    external: bool | None = None,
    *,
    view: bool = False,
) -> None:
    """Write all files into ``draft``; without a model where the gate failed.

    Args:
        draft: An empty folder.
        model: What the target runs.
        report: Of the compilation.
        recipe: Resolved.
        external: Weights in a file beside the model.
        view: Whether somebody draws the graph beside it, for the report to point to.
    """
    from graphpress.frontends import onnx_file
    from graphpress.report import explorer, page

    if model is not None:
        onnx_file.save(model, draft / "model.onnx", external=external)
        report.size["file_after"] = sum(f.stat().st_size for f in draft.glob("model.onnx*"))
        for stem, data in explorer.node_data(report, model).items():
            _dump(draft / f"explorer.{stem}.json", data)
    (draft / "recipe.yaml").write_text(recipe.dump(), encoding="utf-8")
    _dump(draft / "report.json", report.to_json())
    (draft / "report.html").write_text(page.render(report, page.Made(made(report), view)), encoding="utf-8")
    _dump(draft / MANIFEST, manifest(draft, report, recipe))


def made(report: Report) -> list[str]:
    """Versions, machine and date, a line each."""
    isa = report.audit.get("isa") or platform.machine()
    now = datetime.datetime.now(datetime.UTC)
    return [
        ", ".join(f"{name} {version}" for name, version in versions().items()),
        f"{platform.system()} {isa}, {os.cpu_count()} processors; {now:%Y-%m-%d %H:%M} UTC",
    ]


def manifest(draft: Path, report: Report, recipe: Recipe) -> dict[str, Any]:
    """What is needed to make the same again, and to see that it is the same; no times of day, no paths."""
    return {
        "made_by": "graphpress",
        "versions": versions(),
        "machine": {"system": platform.system(), "processor": platform.machine(), "isa": report.audit.get("isa")},
        "target": report.target,
        "seed": report.seed,
        "recipe": recipe.to_json(),
        "data": report.data,
        "files": {f.name: _digest(f) for f in sorted(draft.iterdir()) if f.name.startswith("model.onnx")},
        "gate": finite(report.gate.to_json()),
        "metric": report.metric,
        "size": report.size,
    }


@functools.cache
def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that shape the result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into one clear error."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadRequest("the disk is full", where=str(path), fix="Free space, or choose another --out.") from e
        if e.errno in _REFUSED and _concerns(e.filename, path):
            raise BadRequest(f"cannot be written ({e.strerror})", where=str(path), fix="Choose another --out.") from e
        raise


def _concerns(filename: str | None, path: Path) -> bool:
    """Whether a file is ``path``, something in it or its draft, or a folder above it."""
    if filename is None:
        return True
    near = (str(path), str(path.with_name(f".{path.name}.")))
    return str(filename).startswith(near) or str(path).startswith(str(filename))


def _check(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise BadRequest("it is not a folder", where=str(folder), fix="Choose another --out.")
    if folder.is_dir() and any(folder.iterdir()) and not _ours(folder / MANIFEST):
        raise BadRequest(
            "the folder holds files that graphpress did not write",
            where=str(folder),
            fix="Choose a new or empty --out.",
        )


def _ours(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("made_by") == "graphpress"
    except (OSError, ValueError, AttributeError):
        return False


def _lock(lock: Path, folder: Path) -> None:
    try:
        with lock.open("x") as f:
            f.write(str(os.getpid()))
    except FileExistsError as e:
        if _alive(lock):
            raise BadRequest(
                "another run is writing this folder", where=str(folder), fix="Wait for it, or choose another --out."
            ) from e
        lock.write_text(str(os.getpid()))  # left behind by a run that was killed


def _alive(lock: Path) -> bool:
    if sys.platform == "win32":
        return True  # signal 0 would end the process there
    try:
        os.kill(int(lock.read_text()), 0)
    except (ValueError, ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:
        return True
    return True


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as f:
        return {"sha256": hashlib.file_digest(f, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _dump(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, sort_keys=False) + "\n", encoding="utf-8")
