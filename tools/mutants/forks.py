"""A fork of a warm process for each mutant: everything is imported once, but for what imports the mutated module.

Starting Python with torch and ONNX Runtime takes ten times as long as the few tests that pin one file. Nothing is
written to the checkout: an import hook serves the mutated text.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import linecache
import os
import resource
import signal
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path

MEMORY = 12 << 30  # bytes a mutant may take
ALIVE, KILLED, LATE = "alive", "killed", "late"


class _Serve(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a text, or refuses to."""

    def __init__(self, module: str, path: Path, code: str | None) -> None:
        self.module, self.path, self.code = module, path, code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.module:
            return None
        if self.code is None:
            raise ImportError(fullname)
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def exec_module(self, module: types.ModuleType) -> None:
        assert self.code is not None
        # onnxscript reads the text of a function through linecache; no time of change: it is never read anew
        linecache.cache[str(self.path)] = (len(self.code), None, self.code.splitlines(keepends=True), str(self.path))
        exec(compile(self.code, str(self.path), "exec"), module.__dict__)


def _child(work: Callable[[], int], output: int | None = None) -> int:
    """Start ``work`` in a fork; its exit code is what it returns."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        sink = os.open(os.devnull, os.O_WRONLY) if output is None else output
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        code = work()
    finally:
        os._exit(code)


def _wait(pid: int, seconds: float) -> int | None:
    """The exit code, or None where it had to be stopped."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _pytest(tests: Sequence[str], *options: str) -> int:
    import pytest

    sys.argv = ["pytest"]
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    quiet += ["--tb=no", "--hypothesis-profile=mutants"]
    return int(pytest.main([*tests, *quiet, *options]))


class Warm:
    """The tests of one module, ready to be run again and again.

    Args:
        module: The module that is mutated, by its full name.
        path: Its file.
        tests: Test files, relative to the current folder, and options of pytest.
    """

    def __init__(self, module: str, path: Path, tests: Sequence[str]) -> None:
        self.module, self.path, self.tests = module, path, list(tests)
        self.seconds = 0.0

    def warm_up(self) -> str:
        """Run the tests as they are, then import what they import. Returns "" or what failed."""
        reader, writer = os.pipe()
        began = time.monotonic()
        pid = _child(lambda: self._rehearse(writer), writer)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8", errors="replace") as stream:
            lines = stream.read().splitlines()
        code = _wait(pid, 600)
        self.seconds = time.monotonic() - began
        if code != 0:
            return "\n".join(lines[-30:])
        names = json.loads(lines[-1])
        self._import(names)
        return ""

    def _rehearse(self, writer: int) -> int:
        code = _pytest(self.tests, "-x")
        sys.stdout.flush()
        names = [n for n in sys.modules if not n.startswith(("tests", "_pytest", "pytest", "__main__"))]
        os.write(writer, ("\n" + json.dumps(names) + "\n").encode())
        return code

    def _import(self, names: Sequence[str]) -> None:
        refuse = _Serve(self.module, self.path, None)
        sys.meta_path.insert(0, refuse)
        for name in names:
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001 -- what cannot be imported here is imported by each mutant
                continue
        sys.meta_path.remove(refuse)

    def judge(self, code: str) -> str:
        """ALIVE if the tests pass with this text for the module, KILLED if they fail, LATE if they do not end."""

        def work() -> int:
            sys.meta_path.insert(0, _Serve(self.module, self.path, code))
            return _pytest(self.tests, "-x", "--no-header")

        status = _wait(_child(work), 10 + 4 * self.seconds)
        return LATE if status is None else ALIVE if status == 0 else KILLED


def apart(work: Callable[[], None]) -> None:
    """Run ``work`` in a fork and wait for it, so that what it imports does not stay."""

    def done() -> int:
        work()
        return 0

    _wait(_child(done, os.dup(1)), float("inf"))
