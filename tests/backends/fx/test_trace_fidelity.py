"""A traced module as a graph and as a module again computes what it computes, whatever its style."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim
from torch.utils import _pytree as pytree

import graphpress as gp
from graphpress.backends import fx as backend
from graphpress.errors import Unsupported
from tests.backends.fx.traced import Case, cases, moved, traced
from tests.frontends.test_torch_export_zoo import Basic, ResNet20, safetensors, source

CASES = cases()
STATIC = [name for name in CASES if "dynamic" not in name]
QUICK = ("functional", "tied", "conv-norm")  # the others run by ``make slow``
LONG = ("unet", "prefill", "moe, index", "decode")
LOW = torch.bfloat16


def run(module: torch.nn.Module, args: Any, kwargs: Any) -> list[Any]:
    with torch.no_grad():
        return pytree.tree_leaves(module(*args, **kwargs))


def apart(given: list[Any], wanted: list[Any]) -> float:
    """The largest difference of two results, by the largest number of each tensor; constants are equal."""
    assert len(given) == len(wanted)
    worst = 0.0
    for a, b in zip(given, wanted, strict=True):
        if not isinstance(b, torch.Tensor):
            assert a == b
            continue
        assert a.shape == b.shape
        scale = b.float().abs().max().clamp(min=1e-6)
        worst = max(worst, ((a.float() - b.float()).abs().max() / scale).item())
    return worst


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] * (n in LONG or (i % 2 and n not in QUICK)))
        for i, n in enumerate(STATIC)
    ],
)
def test_float32(name: str) -> None:
    """Every second kind of module; the others are among the slow tests."""
    _equal(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in STATIC])
def test_float32_of_any_size(name: str) -> None:
    assert CASES[name].others
    _equal(name)


def _equal(name: str) -> None:
    module = backend.build(traced(name))
    for args, kwargs in CASES[name].calls():
        given, wanted = run(module, args, kwargs), run(CASES[name].module, args, kwargs)
        assert apart(given, wanted) <= 1e-5
        assert [getattr(t, "dtype", None) for t in given] == [getattr(t, "dtype", None) for t in wanted]


def test_structure_and_constants_of_the_result() -> None:
    """Keys, tuples and lists as the module has them; the same tensor twice, an argument as it is, constants."""
    case = CASES["containers"]
    given = backend.build(traced("containers"))(*case.args, **case.kwargs)
    wanted = case.module(*case.args, **case.kwargs)
    assert pytree.tree_structure(given) == pytree.tree_structure(wanted)
    assert (given["n"], given["none"], given["name"]) == (3, None, "z")
    assert torch.equal(given["x"], case.args[0])
    assert torch.equal(given["again"], given["logits"])


def test_a_named_tuple_keeps_its_fields() -> None:
    case = CASES["tuples"]
    (pair, _), (wanted, _) = backend.build(traced("tuples"))(*case.args), case.module(*case.args)
    torch.testing.assert_close((pair.mean, pair.spread), (wanted.mean, wanted.spread))


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *(pytest.param(n, "module moved", marks=[pytest.mark.slow] * (n in LONG)) for n in STATIC),
        *(pytest.param(name, "traced so", marks=() if name in QUICK else pytest.mark.slow) for name in STATIC),
    ],
)
def test_bfloat16(name: str, way: str) -> None:
    """As far from eager bfloat16 as that itself is from float32, at most twice: another order of operations rounds
    elsewhere, and folded norms round once where eager rounds three times; what is equal operator by operator is equal.
    """
    case = CASES[name]
    args, kwargs = moved(case.args, LOW), moved(case.kwargs, LOW)
    eager = copy.deepcopy(case.module).to(LOW)
    wanted = run(eager, args, kwargs)
    own = apart(wanted, run(case.module, case.args, case.kwargs))
    module = backend.build(traced(name, LOW)) if way == "traced so" else backend.build(traced(name)).to(LOW)
    given = run(module, args, kwargs)
    assert apart(given, wanted) <= 2 * own
    assert 0 < own < 0.02
    if way == "traced so":
        assert [getattr(t, "dtype", None) for t in given] == [getattr(t, "dtype", None) for t in wanted]


def test_numbers_made_of_integers_stay_precise_in_a_module_that_was_moved() -> None:
    """Positions beyond 256 have no bfloat16; the angles are computed in float32, as the module does."""

    class Angles(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(2, 3)

        def forward(self, position: torch.Tensor) -> torch.Tensor:
            angle = position.float() * 0.5
            return self.head(torch.stack((angle.cos(), angle.sin()), -1).to(self.head.weight.dtype))

    torch.manual_seed(0)
    module, position = Angles(), torch.arange(1000, 1016)
    moved = backend.build(traced(Case(module, (position,)))).to(LOW)
    wanted = run(copy.deepcopy(module).to(LOW), (position,), {})
    assert torch.equal(run(moved, (position,), {})[0], wanted[0])


# -- operators that the graph notes as torch's own ---------------------------------------------------------------------


class Interpolate(torch.nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, **self.options)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (8, 7)}, {"scale_factor": 1.5}, {"size": (8, 7), "mode": "bilinear"},
        {"scale_factor": (0.7, 1.3), "mode": "bilinear"},
        {"scale_factor": 0.6, "mode": "bicubic", "align_corners": True},
        {"scale_factor": 1.7, "mode": "bilinear", "recompute_scale_factor": True},
        {"size": (3, 4), "mode": "bilinear", "antialias": True},
    ],
)  # fmt: skip
def test_interpolation_is_torchs_own(options: dict[str, Any]) -> None:
    """Bit for bit but for antialiasing, which ONNX has in another order of operations."""
    torch.manual_seed(0)
    module, x = Interpolate(**options), torch.randn(2, 3, 10, 6)
    given = backend.build(traced(Case(module, (x,))))(x)
    torch.testing.assert_close(given, module(x), rtol=0, atol=2e-6 if "antialias" in options else 0)


def test_of_equal_values_the_same_count() -> None:
    class Best(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x.topk(3, dim=1)

    x = torch.randint(0, 3, (5, 40)).float()
    for given, wanted in zip(backend.build(traced(Case(Best(), (x,))))(x), Best()(x), strict=True):
        assert torch.equal(given, wanted)


# -- what cannot be traced ---------------------------------------------------------------------------------------------


class Routed(torch.nn.Module):
    """Experts chosen in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.experts[int(i)](row) for i, row in zip(x.argmax(-1).tolist(), x, strict=True)])  # here


class Holder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4), Routed()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_routing_in_python_is_refused_with_its_module_and_line() -> None:
    lines = Path(__file__).read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if text.endswith("# here"))
    with pytest.raises(Unsupported) as error:
        traced(Case(Holder(), (torch.randn(2, 4),)))
    assert error.value.where == f"module 'blocks.1', {__file__}:{line}"
    assert "depends on the values of a tensor" in str(error.value)


# -- real models -------------------------------------------------------------------------------------------------------

SIZES = ({0: Dim("batch"), 1: Dim("time", max=256)},)


def _check(module: torch.nn.Module, args: tuple[Any, ...], shapes: Any, *others: torch.Tensor, **options: Any) -> None:
    made = gp.lower(gp.trace(module.eval(), args, None, shapes, **options), "torch-cpu")
    for x in (args[0], *others):
        assert apart(run(made, (x,), {}), run(module, (x,), {})) <= 1e-5
    state = module.state_dict()
    assert {n: p.shape for n, p in made.named_parameters() if n in state} == {
        n: state[n].shape for n, _ in made.named_parameters() if n in state
    }
    given = made.load_state_dict(state, strict=False)
    if not options.get("fold_batchnorm", True):
        assert not (given.missing_keys or given.unexpected_keys)
    assert apart(run(made, args, {}), run(module, args, {})) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("blocks", [3, 9])
def test_resnets(zoo: Path, blocks: int, fold: bool) -> None:
    module = ResNet20() if blocks == 3 else ResNet56()
    name = f"cifar10/resnet{6 * blocks + 2}.safetensors"
    module.load_state_dict(safetensors(zoo / name), strict=False)
    x = torch.randn(2, 3, 32, 32)
    _check(module, (x,), ({0: Dim("batch")},), torch.randn(5, 3, 32, 32), fold_batchnorm=fold)


class ResNet56(ResNet20):
    def __init__(self) -> None:
        super().__init__()
        for layer, width in ((self.layer1, 16), (self.layer2, 32), (self.layer3, 64)):
            layer.extend(Basic(width, width, 1) for _ in range(6))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a loader leaves its file open
@pytest.mark.parametrize("name", ["codelm", "stories260K"])
def test_language_models(zoo: Path, name: str) -> None:
    if name == "codelm":
        module = source(zoo / "llm/codelm/codelm.py").CodeLM()
        module.load_state_dict(safetensors(zoo / "llm/codelm/codelm.safetensors"))
        ids = torch.from_numpy(np.load(zoo / "llm/codelm/calib.npz")["ids"][:2, :65].astype(np.int64))
    else:
        module = source(zoo / "llm/stories260K/load.py").load(str(zoo / "llm/stories260K/stories260K.bin"))
        ids = torch.randint(0, 512, (2, 65))
    _check(module, (ids,), SIZES, ids[:1, :9])
    low = copy.deepcopy(module).to(LOW)
    made = gp.lower(gp.trace(low, (ids,), None, SIZES), "torch-cpu")
    wanted = run(low, (ids,), {})
    assert apart(run(made, (ids,), {}), wanted) <= 2 * apart(wanted, run(module, (ids,), {}))
