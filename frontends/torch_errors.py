"""Why a module cannot be traced: what torch's exceptions know, in one sentence with the module and the line."""

from __future__ import annotations

import inspect
import linecache
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from graphpress.errors import BadRequest, GraphpressError, Unsupported

_LINE = re.compile(r'File "([^"]+)", line (\d+)')
_OVERLOAD = re.compile(r"op='([\w.]+)'")
_FIXED = re.compile(r"(?:static shape|specialized due to hint) of (\d+) for dimension inputs(.*?)\.shape\[(\d+)\]")
_HOME = tuple(str(Path(sysconfig.get_path(p)).resolve()) for p in ("stdlib", "purelib", "platlib"))
_LIBRARY = Path(sysconfig.get_path("stdlib"))
_OTHERWISE = "keep this part out of the module"


def refusal(error: Exception, module: Any) -> GraphpressError:
    """What to raise instead of an exporter's exception.

    Returns:
        Unsupported, or BadRequest when the module had not begun to run: then the arguments are wrong. Its place names
        the path of the innermost module that was running and the line of the user's code, where they are known.
    """
    chain = list(_chain(error))
    if own := next((e for e in chain if isinstance(e, GraphpressError)), None):
        return own
    text, node = str(chain[-1]), _fx_node(chain)
    place = _place(chain, node, module)
    if by_value(error):
        what = f"{_deciding(chain)}what the program does depends on the values of a tensor"
        fix = f"Use torch.where or torch.cond, bound a size with torch._check, or {_OTHERWISE}."
    elif fixed := _FIXED.search(text):
        size, path, axis = fixed.groups()
        name = "".join(f"[{step}]" for step in re.findall(r"\[([^\]]+)\]", path))
        what = (
            f"the module's code fixes the size of a dynamic axis: axis {axis} of inputs{name} is {size} whatever comes"
        )
        fix = (
            "Drop it from dynamic_shapes, give an example of another size if this one is 1, or compute with the "
            "tensor's own shape in forward (a Python loop over an axis is as long as in the example)."
        )
    elif operator := _OVERLOAD.search(text) if "No ONNX function found" in text else None:
        what, fix = (
            f"ONNX has no form of the operator {operator[1]}",
            f"Write it with other operators, or {_OTHERWISE}.",
        )
    elif (node is not None and node.op == "output") or "in output, which is not a known type" in text:
        what = "it returns something else than tensors and plain constants"
        fix = "Return tensors, in tuples, lists or dicts."
    elif place is None:
        fix = f"Give args, kwargs and dynamic_shapes as forward{_signature(module)} takes them."
        return BadRequest(f"cannot be traced: {_sentence(chain[-1])}", where=_type_name(module), fix=fix)
    else:
        what, fix = _sentence(chain[-1]), f"Run it on these inputs to see whether it fails by itself, or {_OTHERWISE}."
    return Unsupported(f"cannot be traced: {what}", where=place or _type_name(module), fix=fix)


def by_value(error: BaseException) -> bool:
    """Whether the program would have to know the values of a tensor."""
    return "data-dependent" in str(list(_chain(error))[-1])


def _deciding(chain: list[BaseException]) -> str:
    """The line of the model, a library's too, that asked for a value."""
    frames = [(f.f_code.co_filename, line) for error in chain for f, line in traceback.walk_tb(error.__traceback__)]
    inner = next(((name, line) for name, line in reversed(frames) if not _is_machinery(name)), None)
    code = linecache.getline(*inner).strip() if inner else ""
    return f"at `{code[:80]}`, " if code else ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _sentence(error: BaseException) -> str:
    """What an exception says first, on one line."""
    lines = " ".join(str(error).split("\n\n")[0].split())
    return re.split(r"\.\s|\.$", lines)[0][:200] or type(error).__name__


def _signature(module: Any) -> str:
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (AttributeError, TypeError, ValueError):
        return ""
    return f"({', '.join(str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters)})"


def _fx_node(chain: list[BaseException]) -> Any:
    """The node of torch's graph that was being translated; the exporter keeps it in its frames only."""
    frames = [f for error in chain for f, _ in traceback.walk_tb(error.__traceback__)]
    return next((v for f in reversed(frames) for v in f.f_locals.values() if _is_fx_node(v)), None)


def _place(chain: list[BaseException], node: Any, module: Any) -> str | None:
    """The module's path and the source line; None where the module was not running."""
    if node is not None:
        return _join(_module_of(node), _last_line(node.meta.get("stack_trace") or ""), module)
    for error in reversed(chain):
        frames = [f for f, _ in traceback.walk_tb(error.__traceback__)]
        path, line = _running_module(frames, module), _source_line(error)
        if path is not None:
            return _join(path, line, module)
    return None


def _join(path: str | None, line: str, module: Any) -> str:
    return ", ".join(part for part in (f"module {path!r}" if path else _type_name(module), line) if part)


def _type_name(module: Any) -> str:
    return f"module {type(module).__name__}"


def _is_fx_node(value: Any) -> bool:
    return type(value).__module__ == "torch.fx.node" and type(value).__name__ == "Node"


def _running_module(frames: list[FrameType], module: Any) -> str | None:
    """Path of the innermost submodule that a frame belongs to."""
    if not hasattr(module, "named_modules"):
        return None
    paths = {id(part): path for path, part in module.named_modules()}
    running = [paths[i] for f in frames if (i := id(f.f_locals.get("self"))) in paths]
    return running[-1] if running else None


def _module_of(node: Any) -> str | None:
    """Path of the module that an fx node was traced in."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return re.sub(r"^L\['self'\]\.?", "", stack[-1][0]) if stack else None


def _source_line(error: BaseException) -> str:
    """``file:line`` of the innermost frame outside of libraries, or of the trace that the message quotes."""
    quoted = _last_line(str(error))
    frames = [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__)]
    own = [f"{name}:{line}" for name, line in frames if _is_users(name)]
    return quoted or (own[-1] if own else "")


def _last_line(trace: str) -> str:
    lines = [f"{name}:{line}" for name, line in _LINE.findall(trace) if _is_users(name)]
    return lines[-1] if lines else ""


def _is_users(filename: str) -> bool:
    """Whether a file is neither a library's, nor Python's, nor ours."""
    return not (_is_machinery(filename) or str(Path(filename).resolve()).startswith(_HOME))


def _is_machinery(filename: str) -> bool:
    """Whether a file is torch's, wherever that is installed, or of Python's own library, or ours."""
    path, roots = Path(filename).resolve(), [Path(__file__).parent, Path(inspect.getfile(sys.modules["torch"])).parent]
    if not {"site-packages", "dist-packages"} & set(path.parts):  # which may lie within the standard library's folder
        roots.append(_LIBRARY)
    return filename.startswith("<") or any(path.is_relative_to(root.resolve()) for root in roots)
