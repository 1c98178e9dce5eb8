"""What differs between two texts of a module, put in place without importing it anew: functions, constants."""

from __future__ import annotations

import ast
import gc
import inspect
import types
from collections.abc import Iterator, Mapping

Key = tuple[str, int]  # qualified name and first line
_PLAIN = frozenset({"property", "staticmethod", "classmethod"})

Changed = list[tuple[Key, types.CodeType]]


def spans(code: str) -> list[range]:
    """Lines, counted from 1, of each outermost function and method of a text that nothing has made more of."""

    def inside(body: list[ast.stmt]) -> Iterator[range]:
        for node in body:
            if isinstance(node, ast.FunctionDef):
                if all(isinstance(d, ast.Name) and d.id in _PLAIN for d in node.decorator_list):
                    yield range(node.lineno, (node.end_lineno or node.lineno) + 1)
            elif isinstance(node, ast.ClassDef):
                yield from inside(node.body)

    return list(inside(ast.parse(code).body))


def changed(path: str, old: str, new: str) -> Changed | None:
    """The outermost functions of ``new`` that are not as in ``old``; None where more than functions differs."""
    return _changed(compile(old, path, "exec"), compile(new, path, "exec"))


def assigned(old: str, new: str) -> ast.Module | None:
    """The statement that gives a constant of the module another value, where nothing else differs."""
    pairs = list(zip(ast.parse(old).body, ast.parse(new).body, strict=False))
    other = [b for a, b in pairs if ast.dump(a) != ast.dump(b)]
    if len(other) != 1 or not isinstance(other[0], ast.Assign | ast.AnnAssign):
        return None
    return ast.Module(other, [])


def _changed(old: types.CodeType, new: types.CodeType) -> Changed | None:
    if not _same(old, new, inner=False):
        return None
    found: Changed = []
    for a, b in zip(_codes(old), _codes(new), strict=True):
        if a.co_flags & inspect.CO_OPTIMIZED:
            if not _same(a, b, inner=True):
                if a.co_freevars != b.co_freevars:
                    return None
                found.append(((a.co_qualname, a.co_firstlineno), b))
        elif (more := _changed(a, b)) is None:
            return None
        else:
            found += more
    return found


def _codes(code: types.CodeType) -> list[types.CodeType]:
    return [c for c in code.co_consts if isinstance(c, types.CodeType)]


def _same(a: types.CodeType, b: types.CodeType, inner: bool) -> bool:
    """Whether two codes do the same, wherever they stand; ``inner``: and so do those within."""
    if _plainly(a) != _plainly(b) or len(_codes(a)) != len(_codes(b)):
        return False
    return not inner or all(_same(x, y, True) for x, y in zip(_codes(a), _codes(b), strict=True))


def _plainly(code: types.CodeType) -> tuple[object, ...]:
    plain = [repr(c) for c in code.co_consts if not isinstance(c, types.CodeType)]
    return code.co_code, code.co_names, code.co_varnames, code.co_exceptiontable, plain


def living(path: str) -> dict[Key, list[types.FunctionType]]:
    """All functions of a file that this process holds."""
    found: dict[Key, list[types.FunctionType]] = {}
    for thing in gc.get_objects():
        if type(thing) is types.FunctionType and thing.__code__.co_filename == path:  # isinstance wakes lazy things
            found.setdefault((thing.__code__.co_qualname, thing.__code__.co_firstlineno), []).append(thing)
    return found


def exchange(functions: Mapping[Key, list[types.FunctionType]], new: Changed) -> None:
    """Give the functions their new code."""
    for key, code in new:
        for function in functions[key]:
            function.__code__ = code
