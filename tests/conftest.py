"""Fixtures that every room uses, and the rules of the whole run."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings

# The same examples in every run; `--hypothesis-profile explore` looks further.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.register_profile("explore", deadline=None, max_examples=1000)
# Few examples, and no search for the simplest that fails: `make mutants` asks often, and only whether.
settings.register_profile(
    "mutants", settings.get_profile("repeatable"), phases=[Phase.explicit, Phase.generate], max_examples=15
)
settings.load_profile("repeatable")

# Tests run in as many processes as there are cores; torch's threads would wait for each other's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where Python is told not to keep what it compiled, each program that a test starts would compile every file anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

ZOO = os.environ.get("GRAPHPRESS_ZOO")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder that holds pyproject.toml."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The folder of real models; a test that uses it is skipped where GRAPHPRESS_ZOO is not set."""
    if not ZOO:
        pytest.skip("GRAPHPRESS_ZOO is not set")
    return Path(ZOO).resolve(strict=True)


@pytest.fixture(scope="session", autouse=True)
def _no_second_copy_of_a_room() -> Iterator[None]:
    """`import passes` works in the repository's root and makes a second copy of every class."""
    yield
    bare = {"passes", "frontends", "backends", "tools"} & sys.modules.keys()
    assert not bare, f"imported without graphpress.: {sorted(bare)}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "zoo" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.zoo)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With the zoo at hand, a zoo test that skips has found a hole in it."""
    report = yield
    if ZOO and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("zoo"):
        report.outcome, report.longrepr = "failed", f"skipped although GRAPHPRESS_ZOO is set: {report.longrepr}"
    return report
