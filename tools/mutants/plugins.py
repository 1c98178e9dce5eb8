"""Plugins of pytest: which lines a test reaches, and running chosen tests of a session again and again."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
import threading
import time
import types
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest


def run(tests: Sequence[str], scratch: str, *plugins: object) -> int:
    """pytest, quietly; ``scratch`` is a folder that it may empty."""
    sys.argv = ["pytest"]
    left_out = ["cacheprovider", "xdist", "unraisableexception", "threadexception", "faulthandler", "junitxml"]
    quiet = ["-q", "-s", "-x", "--no-header", "--tb=short", "--hypothesis-profile=mutants", f"--basetemp={scratch}"]
    quiet += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*tests, *quiet, *(f"-pno:{p}" for p in left_out)], plugins=list(plugins)))


class Watch:
    """Notes what of one file each test runs, and how long it takes.

    Attributes:
        imported: Lines of functions that ran before any test.
        tests: By test, its seconds and lines of functions.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: set[int] = set()
        self.imported: set[int] = set()
        self.tests: dict[str, tuple[float, list[int]]] = {}
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def _enter(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if code.co_filename != self.path or not code.co_flags & inspect.CO_OPTIMIZED:
            return None
        self.lines.add(frame.f_lineno)
        return self._step

    def _step(self, frame: types.FrameType, event: str, arg: Any) -> Any:
        self.lines.add(frame.f_lineno)
        return self._step

    def pytest_collection_finish(self) -> None:
        self.imported, self.lines = self.lines, set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._forget()
        began, self.lines = time.monotonic(), set()
        sys.settrace(self._enter)  # a test may have taken it away
        done = yield
        self.tests[item.nodeid] = time.monotonic() - began, sorted(self.lines)
        return done

    def _forget(self) -> None:
        """Empty the caches of the file's functions: what an earlier test has left there, this one would not reach."""
        for module in [m for m in sys.modules.values() if getattr(m, "__file__", None) == self.path]:
            for thing in vars(module).values():
                if isinstance(thing, functools._lru_cache_wrapper):
                    thing.cache_clear()

    def text(self) -> str:
        """Of ``names`` of modules that are imported, ``tests`` and ``imported``, as JSON in one line."""
        names = [n for n in sys.modules if not n.startswith(("tests", "_pytest", "pytest", "__main__"))]
        return json.dumps({"names": names, "tests": self.tests, "imported": sorted(self.imported)})


class InOrder:
    """Runs the tests in this order and ends the process at the first that fails."""

    def __init__(self, order: Sequence[str]) -> None:
        self.place = {name: i for i, name in enumerate(order)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.place.get(item.nodeid, len(self.place)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os._exit(1)


class Instead:
    """Calls ``work`` in place of running what was collected, with a function that runs chosen tests: to be forked.

    The first that fails ends the process and leaves its name in the file ``failed``.
    """

    def __init__(self, work: Callable[[Callable[[Sequence[str]], int]], None], failed: Path) -> None:
        self.work, self.failed = work, failed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.write_text(report.nodeid, encoding="utf-8")
            os._exit(1)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}

        def run_them(names: Sequence[str]) -> int:
            chosen = [items[name] for name in names if name in items]
            for item, following in zip(chosen, [*chosen[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            return 0

        self.work(run_them)
        return True
