"""Every guide runs from its first block to its last, as a reader would type it."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from tests import warm

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"
NEEDS = {"compress-onnx": ["PIL"], "qat": ["torch"], "report": [], "transformers": ["torch", "transformers"]}
# Each takes ten seconds and more; the README and docs/torch.md, which run in the default suite, hold the same steps.
_BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.M | re.S)


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code); Python blocks that follow each other are one program."""
    found: list[tuple[str, str]] = []
    for language, code in _BLOCK.findall(text):
        if found and language == found[-1][0] == "python":
            found[-1] = language, found[-1][1] + code
        else:
            found.append((language, code))
    return found


def test_each_guide_says_what_it_needs() -> None:
    assert {p.stem for p in GUIDES.glob("*.md")} == set(NEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("guide", NEEDS)
def test_a_guide_runs(guide: str, tmp_path: Path) -> None:
    for package in NEEDS[guide]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    found = blocks((GUIDES / f"{guide}.md").read_text(encoding="utf-8"))
    assert len(found) > 1 or len(_BLOCK.findall((GUIDES / f"{guide}.md").read_text(encoding="utf-8"))) > 2
    for language, code in found:
        for line in [code] if language == "python" else code.strip().splitlines():
            _run(language, line, tmp_path, torch="torch" in NEEDS[guide])


def _run(language: str, code: str, folder: Path, torch: bool) -> None:
    if language == "python":
        done = warm.python(code, cwd=folder, torch=torch)
        expected = 0
    else:
        command, _, comment = code.partition("  # exit code ")
        name, *words = shlex.split(command)
        assert name == "graphpress"
        done, expected = warm.graphpress(*words, cwd=folder), int(comment or 0)
    assert done.returncode == expected, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert done.stdout.strip() or language == "python" or expected
