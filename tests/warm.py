"""Programs run as processes of their own, without each of them importing torch and onnxscript anew.

A server imports what others wrote, and nothing of ours; each program is a fork of it with its own folder, environment,
output files and end of the interpreter, so that exit codes, signals and tracebacks are those of a real process.
ONNX Runtime is not among it: it starts a thread when it is imported, which a fork lacks and waits for at its end.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLAIN = (
    "google.protobuf", "jinja2", "ml_dtypes", "networkx", "numpy", "onnx", "onnx_ir", "onnx_ir.passes.common",
    "onnxscript", "onnxscript.rewriter", "pydantic", "rich.progress", "rich.table", "typer", "yaml",
)  # fmt: skip
TORCH = ("torch", "torch._dynamo", "torch.export", "torch.onnx", "onnxscript.function_libs.torch_lib.ops")
LIMIT = 300  # seconds
CLI = "from graphpress.tools.cli import main\nmain()"


def python(
    code: str | Path, *arguments: str, cwd: Path, torch: bool = False, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script (a path) or ``code`` as ``python code arguments`` does, in the folder ``cwd``."""
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        script = isinstance(code, Path)
        asked = {
            "code": str(code), "script": script, "argv": ["-c" if not script else str(code), *map(str, arguments)],
            "cwd": str(cwd), "env": dict(os.environ | (env or {})), "out": str(out), "err": str(err), "torch": torch,
        }  # fmt: skip
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        answered, _, _ = select.select([server.stdout], [], [], LIMIT)
        assert answered, f"no end after {LIMIT} s: {err.read_text()}"
        returned = json.loads(server.stdout.readline())
        return subprocess.CompletedProcess(asked["argv"], returned, out.read_text(), err.read_text())


def graphpress(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return python(CLI, *map(str, arguments), cwd=cwd)


@functools.cache
def _server() -> subprocess.Popen[str]:
    made = subprocess.Popen([sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(made.kill)
    return made


def _serve() -> dict[str, Any] | None:
    """Answer until the input ends: None; in the process of a program: what it is asked to be."""
    for name in PLAIN:
        importlib.import_module(name)
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for line in requests:
        asked = json.loads(line)
        for name in TORCH if asked["torch"] else ():
            importlib.import_module(name)
        process = os.fork()
        if not process:
            return asked
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
    return None


def _become(asked: dict[str, Any]) -> None:
    for descriptor, path in ((0, os.devnull), (1, asked["out"]), (2, asked["err"])):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = asked["argv"]
    first = str(Path(asked["code"]).parent) if asked["script"] else ""
    sys.path[:0] = [first, *filter(None, asked["env"].get("PYTHONPATH", "").split(os.pathsep))]


if __name__ == "__main__" and (_asked := _serve()):
    _become(_asked)
    if _asked["script"]:
        runpy.run_path(_asked["code"], run_name="__main__")
    else:
        exec(compile(_asked["code"], "<string>", "exec"), {"__name__": "__main__"})
