"""A graph for a torch target: the portable graph stays as it is, kernels are chosen while the module is built."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import fx

from graphpress.backends.fx.build import build
from graphpress.backends.fx.module_runner import ModuleRunner
from graphpress.errors import BadRequest, Unsupported
from graphpress.graph import edit, half_storage
from graphpress.keys import STAGE, TARGET
from graphpress.target import Target
from graphpress.types import Stage


def lower(model: ir.Model, target: Target) -> ir.Model:
    """A copy that names its target. It stays portable: any other backend may still take it.

    Raises:
        Unsupported: The model was rewritten for another runtime.
    """
    made_for = model.metadata_props.get(TARGET, "")
    if STAGE.get(model) is Stage.LOWERED:
        what, fix = (
            f"the model was lowered for {made_for!r}",
            "Lower the model that was compiled without a runtime's own operators.",
        )
        raise Unsupported(what, where=target.name, fix=fix)
    result = model.clone()
    edit.index(result)
    half_storage.store(result)
    result.metadata_props[TARGET] = target.name
    return result


def deploy(model: ir.Model, target: Target, device: str | None = None) -> fx.GraphModule:
    """The module with the target's kernels, in evaluation mode, on the target's device or another one.

    Raises:
        BadRequest: The target's device is not there.
        Unsupported: An operator has no form in torch.
    """
    device = device or device_of(target)
    module = build(model, target=target, device=device)
    return module if device == "cpu" else module.to(device)


def device_of(target: Target) -> str:
    """The device of a target.

    Raises:
        BadRequest: This machine has none.
    """
    if target.provider == "cuda" and not torch.cuda.is_available():
        what, fix = "torch sees no CUDA device here", "Use torch-cpu, or install a CUDA build of torch where a GPU is."
        raise BadRequest(what, where=f"target {target.name!r}", fix=fix)
    return target.provider


def execute(
    model: ir.Model,
    outputs: Sequence[str] | None = None,
    *,
    target: Target | None = None,
    threads: int | None = None,
    spinning: bool = False,
) -> ModuleRunner:
    """A runner of the model in torch, with the kernels of the target that it was lowered for.

    Args:
        model: Any valid model.
        outputs: Values of the main graph to give instead of the graph's outputs.
        target: Where it shall run; the one that it was lowered for, else torch's plain functions, when absent.
        threads, spinning: For other runtimes; torch has one setting for the whole process.

    Raises:
        BadRequest: ``outputs`` names a value that the main graph lacks, or the device is not there.
        Unsupported: An operator has no form in torch; the message names the node.
    """
    if target is None and (name := model.metadata_props.get(TARGET)):
        target = Target.load(name)
    if target is None:
        return ModuleRunner(model, build(model, outputs), outputs)
    device = device_of(target)
    module = build(model, outputs, target=target, device=device).to(device)
    return ModuleRunner(model, module, outputs, device)
