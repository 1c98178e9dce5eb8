"""What a module is given and returns as users have it: caches, dataclasses and nests of containers, by the path of each
tensor in it.

A cache of keys and values becomes tensors that are called as Optimum and onnxruntime-genai call them:
``past_key_values.<layer>.key`` and ``.value`` come in, ``present.<layer>.key`` and ``.value`` go out; with ``decoder.``
and ``encoder.`` before ``key`` where there are both.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from graphpress.errors import Unsupported

Path = tuple[Any, ...]
PLAIN = (bool, int, float, str, type(None))
_KINDS = {"key_cache": "keys", "value_cache": "values"}
_STATES = {"conv_states": "conv_state", "recurrent_states": "recurrent_state"}
_SIDES = {"self_attention_cache": "decoder.", "cross_attention_cache": "encoder."}
_ARGUMENTS = ("past_key_values", "cache")  # of transformers, to version 4 and from 5


def plain(value: Any, module: Any, path: Path = ()) -> Any:
    """A result with its caches and dataclasses as dicts; containers that torch knows stay as they are.

    Raises:
        Unsupported: Something in it is neither a tensor nor a plain constant nor a container; names its path and class.
    """
    from torch import SymBool, SymFloat, SymInt, Tensor
    from torch.utils import _pytree as pytree

    if isinstance(value, (Tensor, SymBool, SymFloat, SymInt, *PLAIN)):
        return value
    if (layers := _layers(value)) is not None:
        value = [{kind: getattr(layer, name) for kind, name in _KINDS.items()} for layer in layers]
    elif (states := _states(value)) is not None:
        value = states
    known = type(value) in pytree.SUPPORTED_NODES and not _sides(value)
    if not known and not _is_namedtuple(value) and (made := _dict(value)) is not None:
        return {key: plain(part, module, (*path, key)) for key, part in made.items()}
    parts, spec = pytree.tree_flatten(value, is_leaf=lambda x: x is not value)
    if len(parts) == 1 and parts[0] is value:
        _refuse(value, module, path)
    keys = list(value) if isinstance(value, Mapping) and len(value) == len(parts) else range(len(parts))
    found = [plain(part, module, (*path, key)) for key, part in zip(keys, parts, strict=True)]
    return value if all(a is b for a, b in zip(found, parts, strict=True)) else pytree.tree_unflatten(found, spec)


def _is_namedtuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _refuse(value: Any, module: Any, path: Path) -> None:
    name, kind = "".join(f"[{step!r}]" for step in path), f"{type(value).__module__}.{type(value).__qualname__}"
    raise Unsupported(
        f"cannot be traced: it returns something else than tensors and plain constants: result{name} is a {kind}",
        where=f"module {type(module).__name__}",
        fix="Return its tensors, in tuples, lists or dicts, or make the class known by "
        "torch.utils._pytree.register_pytree_node.",
    )


def _dict(value: Any) -> dict[str, Any] | None:
    """What a cache or a dataclass holds; None of anything else."""
    if _sides(value):
        return {side: getattr(value, side) for side in _SIDES}
    if (layers := _layers(value)) is not None:
        return {kind: [getattr(layer, name) for layer in layers] for kind, name in _KINDS.items()}
    if all(isinstance(getattr(value, kind, None), Sequence) for kind in _KINDS):
        return {kind: list(getattr(value, kind)) for kind in _KINDS}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return dict(value) if isinstance(value, Mapping) else _attributes(value)


def _attributes(value: Any) -> dict[str, Any] | None:
    """What of an object with states by layer, in a dict by number, holds tensors; None of any other object."""
    from torch import Tensor
    from torch.utils import _pytree as pytree

    held = getattr(value, "__dict__", {})
    if not any(isinstance(part, dict) and list(part) == [*range(len(part))] != [] for part in held.values()):
        return None
    return {k: part for k, part in held.items() if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(part))}


def _layers(value: Any) -> list[Any] | None:
    """The layers of a cache that has them, each with keys and values."""
    layers = getattr(value, "layers", None)
    if not isinstance(layers, Sequence) or not all(
        hasattr(part, "keys") and hasattr(part, "values") for part in layers
    ):
        return None
    return [part for part in layers if part.keys is not None]


def _states(value: Any) -> dict[int, Any] | None:
    """By layer what a cache holds, where some layers have keys and values and others states of a recurrence."""
    layers = getattr(value, "layers", None)
    if not isinstance(layers, Sequence) or not all(isinstance(getattr(p, s, None), Mapping) or hasattr(p, "keys")
                                                   for p in layers for s in _STATES):  # fmt: skip
        return None
    return {i: found for i, part in enumerate(layers) if (found := _of_layer(part))}


def _of_layer(layer: Any) -> dict[str, Any]:
    found = {kind: made for kind, name in _KINDS.items() if (made := getattr(layer, name, None)) is not None}
    for name in _STATES:
        states = [made for made in (getattr(layer, name, None) or {}).values() if made is not None]
        found |= {name: states[0]} if len(states) == 1 else {name: states} if states else {}
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Shape:
    """What is left of a cache without its tensors; caches of one class are alike."""

    cache: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shape) and type(other.cache) is type(self.cache)

    def __hash__(self) -> int:
        return hash(type(self.cache))


def register(given: Any) -> None:
    """Make the classes of the caches among some arguments known to torch's pytree, where they are not."""
    from torch.utils import _pytree as pytree

    for leaf in pytree.tree_leaves(given):
        kind = type(leaf)
        if kind not in pytree.SUPPORTED_NODES and kind not in PLAIN and (_layers(leaf) or _sides(leaf)):
            register([getattr(leaf, side) for side in _SIDES] if _sides(leaf) else [])
            pytree.register_pytree_node(
                kind, _flatten, _unflatten, flatten_with_keys_fn=_flatten_with_keys,
                serialized_type_name=f"{kind.__module__}.{kind.__qualname__}",
            )  # fmt: skip


def _sides(value: Any) -> bool:
    return all(hasattr(value, side) for side in _SIDES)


def _flatten(cache: Any) -> tuple[list[Any], _Shape]:
    return list((_dict(cache) or {}).values()), _Shape(_emptied(cache))


def _flatten_with_keys(cache: Any) -> tuple[list[tuple[Any, Any]], _Shape]:
    from torch.utils import _pytree as pytree

    return [(pytree.MappingKey(key), part) for key, part in (_dict(cache) or {}).items()], _Shape(_emptied(cache))


def _emptied(cache: Any) -> Any:
    made = copy.copy(cache)
    if _sides(cache):
        made.self_attention_cache = made.cross_attention_cache = None
        return made
    made.layers = [copy.copy(layer) for layer in _layers(cache) or ()]
    for layer in made.layers:
        layer.keys = layer.values = None
    return made


def _unflatten(parts: Any, shape: _Shape) -> Any:
    made, parts = copy.copy(shape.cache), list(parts)
    if _sides(made):
        made.self_attention_cache, made.cross_attention_cache = parts
        return made
    made.layers = [copy.copy(layer) for layer in made.layers]
    for layer, keys, values in zip(made.layers, *parts, strict=True):
        layer.keys, layer.values = keys, values
    return made


def paths(spec: Any) -> list[Path]:
    """The path of each leaf, in order; a number where a container has no names for its parts."""
    from torch.utils import _pytree as pytree

    try:
        leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
    ):  # a class without key paths, or one that is made of nothing else than tensors
        return list(_paths(spec))
    return [tuple(_key(step) for step in path) for path, _ in leaves]


def _paths(spec: Any) -> Iterator[Path]:
    if spec.type is None:
        yield ()
        return
    parts, keys = spec.children(), spec.context
    keys = keys if isinstance(keys, list) and len(keys) == len(parts) else range(len(parts))
    for key, part in zip(keys, parts, strict=True):
        yield from ((key, *path) for path in _paths(part))


def _key(entry: Any) -> Any:
    """One step of a path into a nest of containers."""
    found = [getattr(entry, a) for a in ("key", "idx", "name") if hasattr(entry, a)]
    return found[0] if found else str(entry)


def cache_names(found: Sequence[Path], prefix: str) -> list[str | None]:
    """What tensors of a cache are to be called; None for all others."""
    widest = max((int(p[2]) for p in found if _is_pair(p)), default=0)
    return [_cache_name(path, prefix, widest > 1) for path in found]


def _is_pair(path: Path) -> bool:
    return len(path) == 3 and path[0] in _ARGUMENTS and all(isinstance(step, int) for step in path[1:])


def _cache_name(path: Path, prefix: str, sides: bool) -> str | None:
    if _is_pair(path) and path[2] < 4:
        side = ("decoder." if path[2] < 2 else "encoder.") if sides else ""
        return f"{prefix}.{path[1]}.{side}{('key', 'value')[path[2] % 2]}"
    if len(path) > 2 and (state := next((k for k in path[-2:] if k in _STATES), None)) is not None:
        layer, *which = (step for step in path[-3:] if isinstance(step, int))
        return ".".join([prefix, str(layer), _STATES[state], *map(str, which)])
    layer, kind = (path[-2:] if path[-1] in _KINDS else path[:-3:-1]) if len(path) > 1 else (None, None)
    if kind not in _KINDS or not isinstance(layer, int):
        return None
    side = _SIDES.get(path[-3], "") if len(path) > 2 else ""
    return f"{prefix}.{layer}.{side}{_KINDS[kind][:-1]}"


def call_inputs(model: ir.Model, program: Any, module: Any) -> list[str]:
    """The names of a graph's inputs, with those of caches after their layers."""
    given = [s.arg for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    every = argument_paths(program, module)
    tensors = [p for p, arg in zip(every, given, strict=True) if type(arg).__name__ != "ConstantArgument"]
    own = [value.name or "" for value in model.graph.inputs]
    if len(tensors) != len(own):
        return own
    return [new or name for name, new in zip(own, cache_names(tensors, "past_key_values"), strict=True)]


def argument_paths(program: Any, module: Any) -> list[Path]:
    """The path of each leaf of the arguments, from the argument's name on."""
    names = positional(module)
    found = paths(program.call_spec.in_spec)
    return [(names[p[1]] if p[0] == 0 and p[1] < len(names) else p[1], *p[2:]) for p in found]


def positional(module: Any) -> list[str]:
    """The names of a module's parameters; none of an exported program."""
    try:
        return list(inspect.signature(module.forward).parameters)
    except (AttributeError, TypeError, ValueError):
        return []
