"""Whether a target computes on the codes of schemes, weights of other formats being what its kernels see of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from graphpress.passes.quantizers.named import named
from graphpress.target import Target
from graphpress.types import AFFINE, Role, Scheme, Site


def refusal(target: Target, node: ir.Node, schemes: Mapping[Site, Scheme]) -> str | None:
    """Why ``node`` would not run on a low-bit kernel of ``target``; None where it would. See ``Target.allows``."""
    seen = dict(schemes)
    alone = all(s.role is Role.WEIGHT for s in schemes if s.node == node.name)
    for site, scheme in schemes.items():
        if site.node != node.name or scheme.quantizer == AFFINE:
            continue
        kernel = named(scheme.quantizer).in_kernel(scheme)
        if kernel is None and not alone:
            return f"{scheme.quantizer} has levels that are no 8-bit integers, so its weights become floats"
        seen[site] = kernel if kernel is not None and not alone else replace(scheme, quantizer=AFFINE)
    return target.allows(node, seen)
