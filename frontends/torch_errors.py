"""Why a module cannot be traced: what torch's exceptions know, in one sentence with the module and the line."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from graphpress.errors import BadRequest, GraphpressError, Unsupported

_LINE = re.compile(r'File "([^"]+)", line (\d+)')
_OVERLOAD = re.compile(r"op='([\w.]+)'")
_HOME = tuple(str(Path(sysconfig.get_path(p)).resolve()) for p in ("stdlib", "purelib", "platlib"))
# (what the message holds, the rule it breaks, the way out); the first that fits counts
_CAUSES = (
    ("data-dependent", "what the program does depends on the values of a tensor",
     "Use torch.where or torch.cond, check a size with torch._check, or keep this part out of the module."),
    ("dynamic_shapes", "", "Give dynamic_shapes by the names or positions of forward's arguments."),
    ("Constraints violated", "", "Change the range of the dimension, or drop it from dynamic_shapes."),
    ("required argument", "", "Give args and kwargs as forward takes them."),
    ("positional argument", "", "Give args and kwargs as forward takes them."),
    ("keyword argument", "", "Give args and kwargs as forward takes them."),
    ("No ONNX function found", "", "Write it with other operators, or keep this part out of the module."),
)  # fmt: skip
_ARGUMENTS = ("dynamic_shapes", "Constraints violated", "required argument", "positional argument", "keyword argument")


def refusal(error: Exception, module: Any) -> GraphpressError:
    """What to raise instead of an exporter's exception.

    Returns:
        BadRequest when the arguments are wrong, else Unsupported. Its place names the path of the innermost module that
        was running and the line of the user's code, where they are known.
    """
    chain = list(_chain(error))
    text = str(chain[-1])
    key, what, fix = next(
        (cause for cause in _CAUSES if cause[0] in text), ("", "", "Run the module on these inputs to see it fail.")
    )
    if not key and type(chain[-1]).__module__.startswith("torch."):
        fix = "Rewrite this part, or keep it out of the module; see torch.export's documentation."
    if key == "No ONNX function found" and (op := _OVERLOAD.search(text)):
        what = f"ONNX has no form of the operator {op[1]}"
    kind = BadRequest if key in _ARGUMENTS else Unsupported
    return kind(f"cannot be traced: {what or _first_sentence(text, chain[-1])}", where=_place(chain, module), fix=fix)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _first_sentence(text: str, error: BaseException) -> str:
    lines = " ".join(text.split("\n\n")[0].split())
    sentence = re.split(r"\.\s|\.$", lines)[0]
    return sentence[:200] or type(error).__name__


def _place(chain: list[BaseException], module: Any) -> str:
    """The module's path and the source line, from the innermost exception that knows them."""
    for error in reversed(chain):
        frames = [f for f, _ in traceback.walk_tb(error.__traceback__)]
        path, line = _running_module(frames, module), _source_line(error)
        node = next((n for f in reversed(frames) for n in f.f_locals.values() if _is_fx_node(n)), None)
        if node is not None:
            path, line = _module_of(node), _last_line(node.meta.get("stack_trace") or "") or line
        if path is not None or line:
            return ", ".join(p for p in (f"module {path!r}" if path else _type_name(module), line) if p)
    return _type_name(module)


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
    path = str(Path(filename).resolve())
    return not (path.startswith((*_HOME, str(Path(__file__).resolve().parent))) or filename.startswith("<"))
