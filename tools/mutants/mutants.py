"""The mutants of one source text."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cosmic_ray.mutating import mutate_code

from graphpress.tools.mutants.changes import operators


@dataclass(frozen=True)
class Mutant:
    """A whole file's text with one change.

    Attributes:
        kind: The operator that made it.
        line: Where, counted from 1.
        old: The changed lines as they are, without indents.
        new: What became of them.
        code: The text.
    """

    kind: str
    line: int
    old: str
    new: str
    code: str


def mutants(code: str) -> list[Mutant]:
    """Every mutant that means something else, in order of lines.

    Left out, as no test of numbers could or should see them: annotations, decorators, imports, assertions (``strict``
    of zip is one), the ``*`` before what is keyword only, what is there for types alone, and the arguments of what is
    raised (an error's wording). Neither could they tell -1 from another negative size in reshape, and that an option's
    default is 128, not 127, is a choice.
    """
    quiet = list(_quiet(code))
    seen = {code}
    found = []
    for operator in operators():
        for made in _made(code, operator):
            if made in seen or not _parses(made):
                continue
            seen.add(made)
            mutant = describe(type(operator).__name__, code, made)
            position = _first_difference(code, made)
            if not code.startswith("*,", position) and not any(start <= position < end for start, end in quiet):
                found.append(mutant)
    return sorted(found, key=lambda m: (m.line, m.kind, m.new))


def _made(code: str, operator: object) -> Iterator[str]:
    occurrence = 0
    while (made := mutate_code(code, operator, occurrence)) is not None:
        yield made
        occurrence += 1


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def describe(kind: str, code: str, made: str) -> Mutant:
    """A mutant of ``code`` by its whole text."""
    before, after = code.splitlines(), made.splitlines()
    changes = [c for c in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes() if c[0] != "equal"]
    (_, start, _, first, _), (_, _, end, _, last) = changes[0], changes[-1]
    old, new = (" ".join(line.strip() for line in lines) for lines in (before[start:end], after[first:last]))
    return Mutant(kind, start + 1, old, new, made)


def _first_difference(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _sizes(body: list[ast.stmt]) -> Iterator[ast.expr]:
    """Defaults of fields that are integers of 8 and more."""
    for field in body:
        match field:
            case ast.AnnAssign(value=ast.Constant(value=int() as value) as given) if value >= 8:
                yield given


def _quiet(code: str) -> Iterator[tuple[int, int]]:
    """Spans of characters that are left as they are."""
    starts = [0]
    for line in code.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    for node in ast.walk(ast.parse(code)):
        yield from (span(n) for n in _left_out(node))


def _left_out(node: ast.AST) -> Sequence[ast.expr | ast.stmt]:
    match node:
        case ast.Assert() | ast.Import() | ast.ImportFrom():
            return [node]
        case ast.Raise(exc=ast.Call(args=args, keywords=keywords)):
            return [*args, *(k.value for k in keywords)]
        case ast.If(test=ast.Name("TYPE_CHECKING") as test):
            return [test]
        case ast.Call(func=ast.Name("zip"), keywords=keywords):
            return [k.value for k in keywords]
        case ast.Call(func=ast.Attribute(attr="reshape"), args=args):
            sizes = [size for a in args for size in (a.elts if isinstance(a, ast.Tuple) else [a])]
            return [size for size in sizes if isinstance(size, ast.UnaryOp)]
        case ast.FunctionDef(returns=returns, decorator_list=decorators):
            return [*decorators, *filter(None, [returns])]
        case ast.ClassDef(body=body, decorator_list=decorators):
            return [*decorators, *_sizes(body)]
        case ast.arg(annotation=ast.expr() as annotation) | ast.AnnAssign(annotation=annotation):
            return [annotation]
    return []
