"""What a user meets first: the names, the import, the command, the README."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import graphpress

VERBS = {"audit", "calibration_data", "compile", "diff", "from_torch", "inspect", "load", "lower", "save", "to_torch"}
VERBS |= {"compile_ranges", "parameter_groups", "trace", "view"}
VALUES = {"CalibrationData", "Context", "Granularity", "Plan", "Recipe", "Report", "Scheme", "Site", "Target"}
VALUES |= {"RangedModel", "RangedPlan"}
SOURCES = {"Audio", "Images", "Text"}
ERRORS = {"GateError", "GraphpressError"}
PUBLIC = VERBS | VALUES | SOURCES | ERRORS | {"Compiled", "Job", "Pass", "PassReport", "Pipeline"}
HEAVY = {"torch", "onnxruntime", "sklearn", "scipy", "matplotlib"}
COMMANDS = {"import": ["-c", "import graphpress"], "help": [Path(sys.executable).with_name("graphpress"), "--help"]}
MODULES = {"import": 90, "help": 250}  # Python alone imports some sixty


def test_the_public_names_are_these() -> None:
    assert set(graphpress.__all__) == PUBLIC
    assert set(dir(graphpress)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_public_name_has_a_docstring(name: str) -> None:
    assert getattr(graphpress, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="quantise"):
        graphpress.quantise  # noqa: B018


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_heavy_is_imported(command: str) -> None:
    run = [sys.executable, "-X", "importtime", *COMMANDS[command]]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.M))
    assert "graphpress" in imported
    assert not imported & HEAVY
    assert len(imported) < MODULES[command]  # what starting costs
