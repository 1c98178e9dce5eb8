"""What the pages say is true: their Python runs, their commands and links exist, what is made is current."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer

from graphpress import catalog, shipped
from graphpress.observe.sources import kinds as sources
from graphpress.tools.check import manual, pages
from graphpress.tools.cli import app
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(p.relative_to(ROOT).as_posix() for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
TOLD = [
    p
    for p in PAGES
    if not p.startswith(("docs/figures/", "docs/guides/")) and p not in ("CONTRIBUTING.md", "docs/architecture.md")
]


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert text("README.md").count("\n") <= 160


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=[pytest.mark.slow] * (p == "docs/beyond-8-bits.md"))
        for p in TOLD
        if "```python\n" in text(p)
    ],
)
def test_the_python_of_a_page_runs(page: str, tmp_path: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", text(page), re.M | re.S):
        warm.python(block, cwd=tmp_path, torch=True).check_returncode()


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_exists(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", text(page))
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def _commands(page: str) -> list[list[str]]:
    """What stands in indented lines and in single backticks and begins with the name of our command."""
    lines = re.findall(r"^    (graphpress .+)$", text(page), re.M) + re.findall(
        r"`(graphpress [a-z][^`\n]*)`", text(page)
    )
    return [re.sub(r'"[^"]*"', "TEXT", line).split()[1:] for line in lines]


@pytest.mark.parametrize("page", [p for p in PAGES if _commands(p)])
def test_the_commands_of_a_page_exist(page: str) -> None:
    for words in _commands(page):
        command = typer.main.get_command(app.app)
        while (known := getattr(command, "commands", None)) and words and not words[0].startswith("-"):
            assert words[0] in known, f"{page}: graphpress {' '.join(words)}"
            command, words = known[words[0]], words[1:]
        options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        assert {w for w in words if w.startswith("-")} <= options, f"{page}: graphpress ... {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES)
def test_the_modules_that_a_page_runs_exist(page: str) -> None:
    for name in re.findall(r"python -m graphpress\.([\w.]+\w)", text(page)):
        place = ROOT / name.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), f"{page}: {name}"


@pytest.mark.parametrize("page", ["README.md", "docs/command-line.md"])
def test_the_recipes_of_a_page_are_shipped(page: str) -> None:
    """Cells of tables that are nothing but names in backticks, beside passes, which have a page of their own."""
    cells = re.findall(r"\| ((?:`[\w-]+`(?:, |; with samples )?)+) (?=\|)", text(page))
    named = {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)}
    assert len(named) > 10
    assert named <= set(shipped.recipes())


def test_what_pages_take_from_the_source_is_current() -> None:
    assert [str(p) for p in pages.stale(ROOT)] == [], "run: python -m graphpress.tools.check.pages"


def test_an_outdated_page_is_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "a.py").write_text("class A:\n    def f(self, x: int) -> int:\n        return x\n")
    page = tmp_path / "docs" / "page.md"
    page.write_text("before\n<!-- made: a.py A -->\nold\n<!-- end -->\nafter\n")
    ((found, new),) = pages.stale(tmp_path).items()
    assert found == page
    assert new.startswith("before\n") and new.endswith("<!-- end -->\nafter\n")
    assert "class A:\n    def f(self, x: int) -> int: ...\n" in new and "old" not in new
    page.write_text(new)
    assert pages.stale(tmp_path) == {}


def test_the_manual_has_all_that_the_catalog_finds() -> None:
    made = manual.pages()
    kinds = {
        "passes": catalog.passes, "operators": catalog.ops, "quantizers": catalog.quantizers, "losses": catalog.losses,
        "methods": catalog.methods, "adapters": catalog.adapters, "recipes": shipped.recipes,
        "targets": shipped.targets, "metrics": catalog.metrics, "sources": sources.kinds,
    }  # fmt: skip
    assert made.keys() == {"README.md", *(f"{kind}.md" for kind in kinds)}
    for kind, find in kinds.items():
        assert re.findall(r"^## (\S+)$", made[f"{kind}.md"], re.M) == sorted(find()), kind
    quantize = made["passes.md"].partition("\n## quantize\n")[2].partition("\n## ")[0]
    assert re.search(r"^\| `mode` \| \w.* \| '\w+' \| \S.+ \|$", quantize, re.M), "with what its base class says"


def test_each_term_of_the_glossary_stands_where_it_says() -> None:
    rows = re.findall(r"^\| \*\*(.+?)\*\* \| .+ \| `([\w/.]+)`(?: `(\w+)`)? \|$", text("docs/architecture.md"), re.M)
    assert len(rows) > 40
    terms = [term for term, _, _ in rows]
    assert terms == sorted(terms, key=str.lower) and len(terms) == len(set(terms))
    for term, place, name in rows:
        assert (ROOT / place).exists(), f"{term}: {place}"
        assert not name or name in _defined(ROOT / place), f"{term}: {place} has no {name}"


def _defined(path: Path) -> set[str]:
    """Names that a file defines at its top level."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {t.id for t in targets if isinstance(t, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return names
