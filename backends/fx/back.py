"""A trained module back into the graph that it was built from; its parameters by kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from graphpress.backends.fx import dtypes, shelf
from graphpress.backends.fx.build import build
from graphpress.errors import BadRequest, Unsupported
from graphpress.keys import PARAMETERS

_LIKE = "Give as `like` the model that the student was built from."


def trained(module: torch.nn.Module, model: ir.Model) -> dict[str, np.ndarray]:
    """What a module holds of the initializers of the graph that it was built from, where it is not what stands there.

    Args:
        module: As ``build`` made it of ``model``, trained since; wrapped by ``torch.compile`` or DDP too.
        model: Not changed.

    Returns:
        Arrays in the initializers' own types and shapes: scales with what they are multiplied by, zero points rounded
        and kept within their type, statistics of a BatchNormalization too.

    Raises:
        BadRequest: It is no such module, the model is not its model, or a tensor holds NaN or infinity.
        Unsupported: A parameter within the body of a Loop, Scan or If was trained.
    """
    module = unwrapped(module)
    kept = _places(module)
    tensors = dict(module.named_buffers(remove_duplicate=False)) | dict(module.named_parameters(remove_duplicate=False))
    _refuse_inner(module, kept, model)
    found = {}
    for name, (path, form) in kept.items():
        value = model.graph.initializers.get(name)
        old = ir.convenience.get_const_tensor(value) if value is not None else None
        if old is None and isinstance(tensors[path], torch.nn.Parameter):
            raise BadRequest("the model has no such initializer", where=f"like: {name!r}", fix=_LIKE)
        tensor = tensors[path] if form != "steps" else shelf.stepped(tensors[path], tensors[path + shelf.LOG])
        if old is not None and not np.array_equal(array := _array(name, tensor.detach(), form, old), old.numpy()):
            found[name] = array
    return found


def unwrapped(module: Any, where: str = "from_torch") -> torch.nn.Module:
    """The module of a graph within what wraps it.

    Raises:
        BadRequest: There is none.
    """
    for name in ("_orig_mod", "module"):  # torch.compile, which passes attributes on; DDP, AveragedModel
        if name in getattr(module, "_modules", {}) and PARAMETERS not in vars(module).get("meta", {}):
            return unwrapped(getattr(module, name), where)
    if isinstance(module, torch.nn.Module) and PARAMETERS in getattr(module, "meta", {}):
        return module
    fix = "Give the module that graphpress.to_torch made, or a copy of it."
    raise BadRequest(f"a {type(module).__name__} is no module of a graph", where=where, fix=fix)


def _places(module: torch.nn.Module) -> Mapping[str, tuple[str, str]]:
    """Where a module keeps each tensor of its graph, and as what."""
    kept: Mapping[str, tuple[str, str]] = module.meta[PARAMETERS]
    return kept


def _refuse_inner(module: torch.nn.Module, kept: Mapping[str, tuple[str, str]], model: ir.Model) -> None:
    """Refuse parameters of bodies that have a gradient or are no longer as the graph has them."""
    known = {path for path, _ in kept.values()} | {path + shelf.LOG for path, form in kept.values() if form == "steps"}
    within = {n: p for n, p in module.named_parameters() if n not in known}
    start = dict(build(model, quantizers="learnable").named_parameters()) if within else {}
    inner = [
        n for n, p in within.items()
        if p.grad is not None or n not in start or not torch.equal(p.detach().cpu(), start[n].detach())
    ]  # fmt: skip
    if inner:
        what = "it is a parameter within the body of a Loop, Scan or If, which the graph does not take back"
        raise Unsupported(what, where=f"from_torch: {inner[0]!r}", fix="Freeze it: requires_grad_(False).")


def _array(name: str, tensor: torch.Tensor, form: str, old: ir.TensorProtocol) -> np.ndarray:
    """A tensor of the module as the graph holds it."""
    tensor = (tensor.t() if form == "transpose" else tensor).cpu()
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        what = "training left NaN or infinity in it"
        raise BadRequest(what, where=f"from_torch: {name!r}", fix="Lower the learning rate, or take an earlier state.")
    if tensor.numel() != old.size:
        raise BadRequest(f"has {tensor.numel()} elements, {old.size} asked", where=f"like: {name!r}", fix=_LIKE)
    tensor = tensor.reshape(tuple(old.shape))
    dtype = old.numpy().dtype
    if tensor.is_floating_point() and not old.dtype.is_floating_point():  # a zero point
        low, high = dtypes.integer_range(old.dtype.name)
        tensor = tensor.round().clamp(low, high).to(torch.int64)
    wide = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    return wide.numpy().astype(dtype)


def kinds(module: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """Parameters that require gradients: ``weights`` (two axes or more), ``vectors``, ``scales``, ``zero_points``.

    Raises:
        BadRequest: It is no module of a graph.
    """
    module = unwrapped(module, "parameter_groups")
    kept = _places(module)
    scales = {path + shelf.LOG for path, form in kept.values() if form == "steps"}
    zeros = {path for path, form in kept.values() if form == "zero point"}
    found: dict[str, list[torch.nn.Parameter]] = {kind: [] for kind in ("weights", "vectors", "scales", "zero_points")}
    for name, parameter in module.named_parameters():
        kind = "scales" if name in scales else "zero_points" if name in zeros else ""
        if parameter.requires_grad:
            found[kind or ("weights" if parameter.dim() > 1 else "vectors")].append(parameter)
    return found
