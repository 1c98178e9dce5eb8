"""What a module of a graph takes and gives as a state dict where a tensor is not its source's of the same name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from graphpress.errors import BadRequest

FOLDED = "_folded"  # what a state dict calls a tensor that is not the source's of its name


def keep_apart(module: torch.nn.Module, folded: Mapping[str, tuple[str, ...]]) -> None:
    """Let a state dict have tensors that were computed from several parameters under names of their own.

    A convolution's weight with a BatchNorm in it is not the source's weight, though it has its name and shape. In state
    dicts it is called ``<name>_folded``: neither module then takes the other's tensor for its own, in silence, and
    ``load_state_dict`` with ``strict=False`` names what it left out.

    Args:
        module: It gets hooks.
        folded: The paths of such tensors, each with the names in the source's state dict of what its parametrization
            computed it from; nothing where it was no parametrization.
    """
    paths = list(folded)

    def rename(module: torch.nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        entries = list(state.items())
        names = {prefix + p: f"{prefix}{p}{FOLDED}" for p in paths}
        state.clear()  # a new key stands where the old one stood; exporters want parameters under their names
        state.update({k if isinstance(v, torch.nn.Parameter) else names.get(k, k): v for k, v in entries})

    def restore(module: torch.nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        unexpected: list[str] = rest[3]
        for path in paths:
            if state.pop(prefix + path, None) is not None:
                unexpected.append(prefix + path)
            if (own := state.pop(f"{prefix}{path}{FOLDED}", None)) is not None:
                state[prefix + path] = own

    module.register_state_dict_post_hook(rename)
    module.register_load_state_dict_pre_hook(restore)
    _refuse_parametrized(module, folded)
    module._register_deepcopy_hook(lambda copy: _refuse_parametrized(copy, folded))


def _refuse_parametrized(module: torch.nn.Module, folded: Mapping[str, tuple[str, ...]]) -> None:
    """Say it in one sentence where ``load_state_dict`` is given what a parametrization computes a weight from."""
    known = {path: sources for path, sources in folded.items() if sources}
    if not known:
        return
    base = type(module)  # of this GraphModule alone
    take = base.load_state_dict

    def load_state_dict(
        self: torch.nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        given = next((p for p, sources in known.items() if any(s in state_dict for s in sources)), None)
        if strict and given is not None and f"{given}{FOLDED}" not in state_dict:
            raise BadRequest(
                f"the weight that the module computed from {', '.join(known[given])} was folded at trace: the graph "
                "has no such parametrization",
                where=f"load_state_dict: {given!r}",
                fix="Load the state into the module that was traced and trace it again, or take the parametrization "
                "away before (torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.remove_weight_norm).",
            )
        return take(self, state_dict, strict, assign)

    base.load_state_dict = load_state_dict
