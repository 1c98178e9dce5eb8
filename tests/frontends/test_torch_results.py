"""Arguments and results as users have them: caches, dataclasses, classes that torch knows or not, numbers and None."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

import graphpress as gp
from graphpress.errors import Unsupported
from tests import kit

X = torch.randn(2, 3, 4)


class Layer:
    """Keys and values of one layer."""

    def __init__(self, keys: Any = None, values: Any = None) -> None:
        self.keys, self.values = keys, values


class Cache:
    """A cache as libraries have it, which torch does not know."""

    def __init__(self, count: int) -> None:
        self.layers = [Layer() for _ in range(count)]


class Both:
    """The caches of a decoder with an encoder."""

    def __init__(self, own: Cache, cross: Cache) -> None:
        self.self_attention_cache, self.cross_attention_cache = own, cross


class Old:
    """A cache as libraries had it."""

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        self.key_cache, self.value_cache = keys, values


@dataclasses.dataclass
class Pair:
    logits: torch.Tensor
    state: Any = None


class State:
    """The state of a recurrence beside other things, as libraries have it."""

    def __init__(self, x: torch.Tensor) -> None:
        self.offset, self.config, self.dtype = x + 1, object(), x.dtype
        self.by_layer = {0: (x + 2, x + 3), 1: (x + 4, x + 5)}


class Unnamed(OrderedDict[str, Any]):
    """Known to torch, without names for its parts."""


pytree.register_pytree_node(
    Unnamed, lambda o: (list(o.values()), list(o)), lambda v, k: Unnamed(zip(k, v, strict=True))
)


def _filled(x: torch.Tensor, count: int = 2) -> Cache:
    cache = Cache(count)
    for i, layer in enumerate(cache.layers):
        layer.keys, layer.values = x + i, x - i
    return cache


class Returns(nn.Module):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: torch.Tensor) -> Any:
        return self.what(x * 2)


NAMES = ["present.0.key", "present.0.value", "present.1.key", "present.1.value"]


@pytest.mark.parametrize(
    ("what", "names"),
    [
        (lambda x: {"logits": x, "cache": _filled(x + 1)}, ["logits", *NAMES]),
        (lambda x: (x, _filled(x)), ["output_0", *NAMES]),
        (lambda x: {"past_key_values": tuple((x + i, x - i - 1) for i in range(2))}, NAMES),
        (lambda x: {"c": Old([x, x + 1], [x + 2, x + 3])}, [*NAMES[::2], *NAMES[1::2]]),
        (
            lambda x: {"cache": Both(_filled(x, 1), _filled(-x, 1))},
            [f"present.0.{side}.{kind}" for side in ("decoder", "encoder") for kind in ("key", "value")],
        ),
        (
            lambda x: {"past_key_values": [(x, x + 1, x + 2, x + 3)]},
            [f"present.0.{side}.{kind}" for side in ("decoder", "encoder") for kind in ("key", "value")],
        ),
        (lambda x: Pair(x, {"a": [x + 1, None]}), ["logits", "state_a_0"]),
        (lambda x: Unnamed(sample=x, more=(x + 1, x + 2)), ["sample", "more_0", "more_1"]),
        (lambda x: {"blocks": [{"key": x, "value": x + 1}]}, ["blocks_0_key", "blocks_0_value"]),
        (
            lambda x: {"y": x, "state": State(x)},
            ["y", "state_offset", *(f"state_by_layer_{i}_{j}" for i in (0, 1) for j in (0, 1))],
        ),
    ],
    ids=["cache", "in a tuple", "tuples", "old cache", "two caches", "four", "dataclass", "unnamed", "own", "state"],
)
def test_results(what: Any, names: list[str]) -> None:
    module = Returns(what)
    model = gp.trace(module, X)
    assert [v.name for v in model.graph.outputs] == names
    got = gp.lower(model)({"x": X.numpy()})
    made = gp.lower(model, "torch-cpu")(X)
    for name, tensor in zip(names, (t for t in pytree.tree_leaves(made) if t is not None), strict=True):
        np.testing.assert_array_equal(got[name], tensor.numpy(), err_msg=name)


def test_values_are_in_their_places() -> None:
    got = gp.lower(gp.trace(Returns(lambda x: _filled(x)), X))({"x": X.numpy()})
    for name, offset in zip(NAMES, (0, 0, 1, -1), strict=True):
        np.testing.assert_array_equal(got[name], (X * 2 + offset).numpy())


class Step(nn.Module):
    """One step of decoding: the cache grows."""

    def forward(self, x: torch.Tensor, cache: Any = None) -> Any:
        for layer in cache.layers:
            layer.keys, layer.values = (torch.cat([old, x], 1) for old in (layer.keys, layer.values))
        return {"sum": sum(layer.keys.sum(1) for layer in cache.layers), "cache": cache}


def test_cache_in_and_out() -> None:
    """The new cache is the old one and a step; the number of tokens in it varies."""
    batch, past = Dim("batch"), Dim("past")
    axes = {0: batch, 1: past}
    shapes = {"x": {0: batch}, "cache": [[axes] * 2, [axes] * 2]}
    model = gp.trace(Step(), (X[:, :1],), {"cache": _filled(X)}, shapes)
    names = {v.name: [str(d) for d in v.shape or ()] for v in model.graph.inputs}
    past_names = [name.replace("present", "past_key_values") for name in NAMES]
    assert sorted(names) == sorted(["x", *past_names])
    assert names["past_key_values.1.value"] == ["batch", "past", "4"]
    old = {
        name: np.random.default_rng(i).normal(size=(3, 5, 4)).astype(np.float32) for i, name in enumerate(past_names)
    }
    x = np.ones((3, 1, 4), np.float32)
    got = gp.lower(model)({"x": x, **old})
    for name in past_names:
        wanted = np.concatenate([old[name], x], 1)
        np.testing.assert_array_equal(got[name.replace("past_key_values", "present")], wanted)


class Options(nn.Module):
    def forward(self, x: torch.Tensor, *, extra: Any = None, scale: float = 1.0, flag: bool = True) -> torch.Tensor:
        y = x * scale if extra is None else x + extra["bias"]
        return y.relu() if flag else y


@pytest.mark.parametrize(
    ("kwargs", "shapes"),
    [
        ({"extra": None}, {"extra": None}),
        ({"scale": 2.0, "flag": False}, {"flag": None, "scale": None}),
        ({"flag": False, "extra": {"none": None, "bias": X[0]}}, {"flag": None, "extra": {"none": None, "bias": None}}),
    ],
)
def test_dimensions_beside_what_is_no_tensor(kwargs: dict[str, Any], shapes: dict[str, Any]) -> None:
    model = gp.trace(Options(), X, kwargs, {"x": {0: Dim("rows")}, **shapes})
    assert str((model.graph.inputs[0].shape or [0])[0]) == "rows"
    x = torch.randn(5, 3, 4)
    feeds = {"x": x.numpy()} | ({"extra_bias": X[0].numpy()} if kwargs.get("extra") else {})
    np.testing.assert_allclose(gp.lower(model)(feeds)["output"], Options()(x, **kwargs).numpy(), rtol=1e-6)


class Unknown:
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


class Loop(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, i] * i for i in range(x.shape[1])], 1)


@pytest.mark.parametrize(
    ("module", "shapes", "words"),
    [
        (Returns(lambda x: {"a": [x, Unknown(x)]}), None, r"result\['a'\]\[1\] is a .*Unknown"),
        (Loop(), ({1: Dim.DYNAMIC},), r"axis 1 of inputs\['x'\] is 3 whatever comes"),
        (Loop(), ({1: Dim("tokens")},), r"'tokens'.* axis 1 of 'x' is 3 whatever comes"),
    ],
)
def test_refusals_say_which(module: nn.Module, shapes: Any, words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        gp.trace(module, X, None, shapes)


class StatesLayer:
    """A layer of a cache as transformers 5 keep it for a recurrence: states by number, none of its own keys."""

    def __init__(self, *states: torch.Tensor) -> None:
        self.conv_states, self.recurrent_states = dict(enumerate(states[:1])), dict(enumerate(states[1:]))


class KeysLayer:
    def __init__(self, keys: torch.Tensor | None) -> None:
        self.keys = self.values = keys


class MixedCache:
    def __init__(self, *layers: object) -> None:
        self.layers = list(layers)


class Recurrent(nn.Module):
    """Gives a cache in which layers have states, keys and values, or nothing yet."""

    def forward(self, x: torch.Tensor) -> dict[str, object]:
        layers = StatesLayer(x + 1, x + 2), KeysLayer(None), KeysLayer(x + 3), StatesLayer(x, x + 4, x + 5)
        return {"logits": x, "cache": MixedCache(*layers)}


def test_states_of_a_recurrence_are_outputs_of_their_layers() -> None:
    x = torch.randn(2, 3)
    model = gp.trace(Recurrent(), (x,))
    wanted = {
        "logits": 0, "present.0.conv_state": 1, "present.0.recurrent_state": 2, "present.2.key": 3,
        "present.2.value": 3, "present.3.conv_state": 0, "present.3.recurrent_state.0": 4,
        "present.3.recurrent_state.1": 5,
    }  # fmt: skip
    assert [v.name for v in model.graph.outputs] == list(wanted)
    for name, given in kit.run(model, {"x": x.numpy()}).items():
        np.testing.assert_allclose(given, x.numpy() + wanted[name], rtol=1e-6)
