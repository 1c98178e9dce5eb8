"""The call signature of the traced module: noted on the graph, and how a module made of the graph is called."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

import graphpress as gp
from graphpress.errors import BadRequest, Unsupported
from graphpress.keys import SIGNATURE

X = torch.arange(6.0).reshape(2, 3)


class Options(nn.Module):
    def forward(
        self, x: torch.Tensor, scale: float = 2.0, mask: Any = None, *, bias: torch.Tensor, mode: str = "add",
        dtype: Any = torch.float32,
    ) -> torch.Tensor:  # fmt: skip
        x = x * scale if mask is None else x * scale * mask
        return x + bias.to(dtype) if mode == "add" else x - bias.to(dtype)


class Star(nn.Module):
    def forward(self, first: torch.Tensor, *rest: torch.Tensor, **more: Any) -> Any:
        return [first + sum(rest), more["a"]["b"][0] * more["c"]]


class Unused(nn.Module):
    """Arguments that nothing needs, and results that need no argument."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor, unused: torch.Tensor, flags: list[bool]) -> Any:
        return x, x, self.weight, {"more": (None, True, 1.5, flags[0])}


class Names(nn.Module):
    """Arguments whose names are those of a module's own attributes, or Python's."""

    def forward(self, input: torch.Tensor, training: torch.Tensor, type: Any = None) -> torch.Tensor:
        return input - training


class Output(OrderedDict[str, Any]):
    """A mapping with attributes, as Hugging Face returns."""


pytree.register_pytree_node(
    Output,
    lambda o: (list(o.values()), list(o)),
    lambda values, keys: Output(zip(keys, values, strict=True)),
    flatten_with_keys_fn=lambda o: ([(pytree.MappingKey(k), v) for k, v in o.items()], list(o)),
)


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor


pytree.register_dataclass(Batch)


class Custom(nn.Module):
    def forward(self, batch: Batch, scale: torch.Tensor) -> Any:
        return Output(logits=batch.x * scale, rest=Batch(batch.y, batch.y + 1))


class Sizes(nn.Module):
    """A number that may vary, and sizes that come out."""

    def forward(self, x: torch.Tensor, n: int) -> Any:
        return x * n, x.shape[0], x.shape[0] * n, x.shape[1]


def signature(module: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gp.trace(module, args, kwargs).metadata_props[SIGNATURE])
    return found


def test_arguments_stand_in_the_order_of_forward_with_what_was_left_out() -> None:
    assert signature(Options(), X, bias=X) == {
        "inputs": [
            ["x", "x", False], ["scale", {"value": 2.0}, True], ["mask", {"value": None}, True],
            ["bias", "bias", False], ["mode", {"value": "add"}, True], ["dtype", {"repr": "torch.float32"}, True],
        ],
        "output": "output",
    }  # fmt: skip


def test_what_differs_from_the_default_may_not_be_left_out() -> None:
    found = signature(Options(), X, 3.0, X, bias=X)
    assert found["inputs"][1:3] == [["scale", {"value": 3.0}, False], ["mask", "mask", False]]


def test_a_nest_of_arguments_and_results() -> None:
    found = signature(Star(), X, X + 1, X, c=X, a={"b": [X, X]})
    assert found["inputs"] == [
        ["first", "first", False], ["rest_0", "rest_0", False], ["rest_1", "rest_1", False],
        ["c", "c", False], ["a", {"dict": [["b", {"list": ["a_b_0", "a_b_1"]}]]}, False],
    ]  # fmt: skip
    assert found["output"] == {"list": ["output_0", "output_1"]}


def same(given: Any, wanted: Any) -> None:
    leaves = [pytree.tree_leaves(v) for v in (given, wanted)]
    for a, b in zip(*leaves, strict=True):
        assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b and type(a) is type(b)


def lowered(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return gp.lower(gp.trace(module, args, kwargs), "torch-cpu")


def test_the_module_is_called_as_its_source() -> None:
    made, source = lowered(Options(), X, bias=X), Options()
    for args, kwargs in (
        ((X,), {"bias": X + 1}), ((X, 2.0), {"bias": X}), ((X, 2.0, None), {"bias": X, "mode": "add"}),
        ((), {"x": X, "bias": X, "scale": 2.0, "dtype": torch.float32}),
    ):  # fmt: skip
        same(made(*args, **kwargs), source(*args, **kwargs))


@pytest.mark.parametrize(
    ("args", "kwargs", "what"),
    [
        ((X, 3.0), {"bias": X}, r"input 'scale': is 3.0, and was 2.0 when the module was traced"),
        ((X,), {"bias": X, "mask": X}, r"input 'mask': is a tensor, and was None when the module was traced"),
        ((X,), {"bias": X, "mode": "sub"}, r"input 'mode': is 'sub'"),
        ((X,), {"bias": X, "dtype": torch.float16}, r"input 'dtype': is torch.float16"),
        ((X,), {}, r"input 'bias': the input is missing"),
        ((X,), {"bias": X, "maks": None}, r"input 'maks': the model has no such input. .*mask"),
    ],
)
def test_a_call_that_the_graph_is_not_for_is_refused(args: Any, kwargs: Any, what: str) -> None:
    with pytest.raises(BadRequest, match=what):
        lowered(Options(), X, bias=X)(*args, **kwargs)


def test_star_arguments() -> None:
    made, kwargs = lowered(Star(), X, X + 1, X, c=X, a={"b": [X, X]}), {"c": X + 2, "a": {"b": [X, X]}}
    same(made(X, X, X + 3, **kwargs), Star()(X, X, X + 3, **kwargs))
    with pytest.raises(BadRequest, match="the input is missing"):
        made(X, X, **kwargs)
    with pytest.raises(BadRequest, match=r"input 'a': has 3 parts, the model wants a list of 2"):
        made(X, X, X, c=X, a={"b": [X, X, X]})
    with pytest.raises(BadRequest, match=r"input 'a': is \['z'\], the model wants a dict with the keys \['b'\]"):
        made(X, X, X, c=X, a={"z": X})


def test_unused_arguments_and_results_that_are_none() -> None:
    made, args = lowered(Unused(), X, X, [True, False]), (X + 1, torch.zeros(2, 3), [True, False])
    same(made(*args), Unused()(*args))
    with pytest.raises(BadRequest, match=r"input 'flags': is False, and was True"):
        made(X, X, [False, False])


def test_names_that_modules_or_python_have_themselves() -> None:
    made = lowered(Names(), X, X)
    assert torch.equal(made(input=X, training=X + 1), -torch.ones(2, 3))
    assert torch.equal(made(X, X, None), torch.zeros(2, 3))


def test_types_that_pytree_knows_by_registration() -> None:
    batch, source = Batch(X, X - 1), Custom()
    made = lowered(source, batch, torch.tensor(2.0))
    found, wanted = made(Batch(X + 3, X), torch.tensor(3.0)), source(Batch(X + 3, X), torch.tensor(3.0))
    assert isinstance(found, dict)
    same((found["logits"], *found["rest"]), (wanted["logits"], wanted["rest"].x, wanted["rest"].y))
    with pytest.raises(BadRequest, match="input 'batch': has 1 parts"):
        made(X, torch.tensor(3.0))


def test_numbers_that_vary() -> None:
    shapes = ({0: Dim.DYNAMIC}, Dim.DYNAMIC)
    model = gp.trace(Sizes(), (X, 5), None, shapes)
    made = gp.lower(model, "torch-cpu")
    for args in ((X, 5), (torch.ones(4, 3), 7)):
        same(made(*args), Sizes()(*args))
    with pytest.raises(BadRequest, match="input 'n': is a float, not an int"):
        made(X, 5.0)


@pytest.mark.parametrize("form", ["program", "graph module"])
def test_other_forms_of_a_module(form: str) -> None:
    program = torch.export.export(Options(), (X,), {"bias": X.clone()})
    made = lowered(program) if form == "program" else lowered(program.module(), X, bias=X)
    same(made(X + 1, bias=X), Options()(X + 1, bias=X))


def test_an_exported_program_with_constants_stays_as_it_is() -> None:
    program = torch.export.export(Unused(), (X, X, [True, False]))
    code = program.graph_module.code
    made = lowered(program)
    same(made(X, X, [True, False]), Unused()(X, X, [True, False]))
    assert program.graph_module.code == code
    same(program.module()(X, X, [True, False]), Unused()(X, X, [True, False]))


def test_the_signature_is_saved_and_survives_passes(tmp_path: Path) -> None:
    model, _ = gp.compile(gp.trace(Star(), (X, X + 1), {"c": X, "a": {"b": [X]}}), [], target="torch-cpu", prove=False)
    gp.save(model, tmp_path / "model.onnx")
    made = gp.lower(tmp_path / "model.onnx", "torch-cpu")
    same(made(X, X, c=X, a={"b": [X]}), Star()(X, X, c=X, a={"b": [X]}))


def test_the_traced_module_has_no_hook_left() -> None:
    module = Unused()
    gp.trace(module, (X, X, [True, False]))
    with pytest.raises(Unsupported):
        gp.trace(Print(), X)
    assert not module._forward_hooks
    assert module(X, X, [True])[3]["more"][2] == 1.5


class Print(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x if x.sum() > 0 else -x


def test_a_key_that_json_cannot_hold() -> None:
    class Tuple(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return {(1, 2): x + 1}

    with pytest.raises(Unsupported, match=r"a dict has the key \(1, 2\) of type tuple"):
        gp.trace(Tuple(), X)
