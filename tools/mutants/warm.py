"""A process that has imported everything, and the tests of one module in it, ready to be run again and again.

Starting Python with torch and ONNX Runtime takes ten times as long as the few tests that pin one file. Where only
functions differ they are exchanged in a fork that has collected the tests already, and only the tests that reach the
function run, those that reach the line first. A constant is set anew. Else (defaults, classes, decorated functions, and
a constant that is not missed) the fork imports the mutated text and all that imports it anew, and runs all tests.
Nothing is written to the checkout.
"""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import json
import linecache
import os
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from graphpress.tools.mutants import forks, functions, plugins

ALIVE, KILLED, LATE, NEVER_RUN = "alive", "killed", "late", "never run"
_AGAIN = "again"  # to be judged by importing it

Run: TypeAlias = Callable[[Sequence[str]], int]  # of tests by name; does not come back where one fails


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


class Warm:
    """The tests of one module.

    Args:
        module: The module that is mutated, by its full name.
        path: Its file.
        text: The file's text.
        tests: Test files, relative to the current folder, and options of pytest.
    """

    def __init__(self, module: str, path: Path, text: str, tests: Sequence[str]) -> None:
        self.module, self.path, self.text, self.tests = module, path, text, list(tests)
        self.spans = functions.spans(text)
        self.reach: dict[str, tuple[float, set[int]]] = {}
        self.imported: set[int] = set()
        self.scratch = tempfile.mkdtemp(prefix="mutants")
        self.failed = Path(self.scratch).with_suffix(".failed")
        self.kills: Counter[str] = Counter()

    def warm_up(self) -> str:
        """Run the tests as they are, then import what they import. Returns "" or what failed."""
        written, code = forks.read(self._rehearse, 600)
        *said, last = written.splitlines()
        if code != 0:
            return "\n".join(said[-30:])
        found = json.loads(last)
        self.reach = {name: (seconds, set(lines)) for name, (seconds, lines) in found["tests"].items()}
        self.imported = set(found["imported"])
        self._import(found["names"])
        return ""

    def _rehearse(self, writer: int) -> int:
        watch = plugins.Watch(str(self.path))
        code = plugins.run(self.tests, self.scratch, watch)
        sys.stdout.flush()
        with os.fdopen(os.dup(writer), "w", encoding="utf-8") as stream:
            stream.write(f"\n{watch.text()}\n")
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
        gc.collect()

    def fates(self, made: Sequence[tuple[int, str]]) -> Iterator[str]:
        """Of texts that differ at these lines: ALIVE, KILLED, LATE (the tests do not end) or NEVER_RUN, one by one."""
        noted = Path(self.scratch).with_suffix(".fates")
        forks.apart(lambda: self._quickly(made, noted))
        quick = noted.read_text(encoding="utf-8").splitlines() if noted.exists() else []
        noted.unlink(missing_ok=True)
        for (line, code), fate in zip(made, itertools.chain(quick, itertools.repeat(_AGAIN)), strict=False):
            yield self.judge(code, line) if fate == _AGAIN else fate

    def _quickly(self, made: Sequence[tuple[int, str]], noted: Path) -> None:
        """Write to a file, line by line, what can be judged by exchanging functions."""

        def work(run: Run) -> None:
            living = functions.living(str(self.path))
            gc.freeze()
            if forks.wait(forks.start(lambda: run(list(self.reach))), float("inf")) != 0:
                return  # they do not bear it: all is imported
            with noted.open("w", encoding="utf-8", buffering=1) as stream:
                for line, code in made:
                    stream.write(f"{self._exchanged(line, code, living, run)}\n")

        plugins.run(self.tests, self.scratch, plugins.Instead(work, self.failed))

    def _exchanged(
        self, line: int, code: str, living: Mapping[functions.Key, list[types.FunctionType]], run: Run
    ) -> str:
        span = next((s for s in self.spans if line in s), None)
        if span is None:
            return self._assigned(code, run)
        new = functions.changed(str(self.path), self.text, code)
        if not new or self.imported & set(span) or any(key not in living for key, _ in new):
            return _AGAIN
        chosen = [name for name in self._order(line) if self.reach[name][1] & set(span)]
        return self._fate(lambda: functions.exchange(living, new), chosen, run) if chosen else NEVER_RUN

    def _assigned(self, code: str, run: Run) -> str:
        """Of another constant; another file may have read it while it was imported."""
        statement = functions.assigned(self.text, code)
        if statement is None:
            return _AGAIN
        places = sys.modules[self.module].__dict__
        fate = self._fate(lambda: exec(compile(statement, str(self.path), "exec"), places), self._order(0), run)
        return _AGAIN if fate == ALIVE else fate

    def _fate(self, change: Callable[[], None], chosen: Sequence[str], run: Run) -> str:
        def work() -> int:
            change()
            return run(chosen)

        status = forks.wait(forks.start(work), 5 + 4 * sum(self.reach[name][0] for name in chosen))
        if self.failed.exists():
            self.kills[self.failed.read_text(encoding="utf-8")] += 1
            self.failed.unlink()
        return LATE if status is None else ALIVE if status == 0 else KILLED

    def _order(self, line: int) -> list[str]:
        """All tests: those that reach the line first, then those that are quick for what they have killed before."""

        def rank(name: str) -> tuple[bool, float]:
            seconds, lines = self.reach[name]
            return line not in lines, seconds / (1 + self.kills[name]) ** 2

        return sorted(self.reach, key=rank)

    def judge(self, code: str, line: int = 0) -> str:
        """The fate of a text that is imported, with all tests."""

        def work() -> int:
            sys.meta_path.insert(0, _Serve(self.module, self.path, code))
            return plugins.run(self.tests, self.scratch, plugins.InOrder(self._order(line)))

        seconds = sum(seconds for seconds, _ in self.reach.values())
        status = forks.wait(forks.start(work), 10 + 4 * seconds)
        return LATE if status is None else ALIVE if status == 0 else KILLED
