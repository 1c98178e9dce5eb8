"""Which kernel computes a quantized product: by the target's table, then by the kernel's own word."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from graphpress.backends import canonical
from graphpress.backends.fx import sites
from graphpress.backends.fx.kernels import activations, float8_linear, int8_conv, int8_linear, sparse24, weight_only
from graphpress.backends.fx.options import Chosen, Kernels
from graphpress.backends.fx.sites import ProductSite
from graphpress.errors import Unsupported
from graphpress.graph import edit
from graphpress.graph.readers import plain_gemm
from graphpress.keys import SPARSITY
from graphpress.target import Target

REFUSED = "graphpress.refused"  # key in the meta of a module: Kernels.refused
DENSE = "graphpress.dense"  # likewise: Kernels.dense


def kernels_for(model: ir.Model, target: Target, device: str) -> Kernels:
    """The kernels for a model, and why a quantized or pruned product has none."""
    found: dict[ir.Node, Chosen] = {}
    placed: list[ProductSite] = []
    refused: dict[str, str] = {}
    dense: dict[str, str] = {}
    for node in edit.nodes(model):
        site = sites.product_site(node)
        if site is None and SPARSITY in node.metadata_props:
            try:
                found[node] = _sparse(node, device)
            except Unsupported as e:
                dense[node.name or ""] = e.what
        if site is None:
            continue
        try:
            found[site.tail] = _chosen(site, target, device)
            placed.append(site)
        except Unsupported as e:
            refused[node.name or ""] = f"{e.what}: computed exactly from its codes, in float"
    return Kernels(found, sites.replaced(placed), refused, dense)


def _sparse(node: ir.Node, device: str) -> Chosen:
    """A sparse product for a pruned float layer.

    Raises:
        Unsupported: There is none; says why.
    """
    weight, source = edit.constant(node.inputs[1]), node.inputs[0]
    if weight is None or source is None or node.op_type not in ("MatMul", "Gemm"):
        raise Unsupported(f"torch multiplies matrices sparse, not {node.op_type}")
    if node.op_type == "Gemm" and not plain_gemm(node):
        raise Unsupported("a Gemm that scales or transposes its input (alpha, beta, transA)")
    bias = edit.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and (bias is None or bias.ndim != 1):
        raise Unsupported("the bias is no constant vector")
    if weight.dtype.kind != "f":
        raise Unsupported(f"a weight of {weight.dtype}")
    rows = _tensor(weight if node.op_type == "Gemm" and edit.attribute(node, "transB", 0) else weight.T)
    assert rows is not None
    if (why := sparse24.available(rows, device)) is not None:
        raise Unsupported(why)
    return Chosen(node, sparse24.Sparse24Linear(rows, _tensor(bias)), source)


def _chosen(site: ProductSite, target: Target, device: str) -> Chosen:
    """A kernel for a site.

    Raises:
        Unsupported: There is none; says why.
    """
    node = site.node
    if not target.find(node.op_type, site.mode):
        raise Unsupported(f"{target.name} has no {site.mode} kernel for {node.op_type}")
    if site.weight.dtype == ir.DataType.FLOAT8E4M3FN:
        return _float8(site, device)
    weight = _weight(site)
    if site.x is None:
        assert node.inputs[0] is not None
        return Chosen(node, _weight_only(site, weight), node.inputs[0])
    if site.x.bits != 8:
        raise Unsupported(f"activations are quantized to {site.x.bits} bits, integer kernels take 8")
    if weight["scale"].dim() > 1:
        raise Unsupported("weights have a scale for each group, an integer kernel takes one for each channel")
    kernel = int8_conv if node.op_type == "Conv" else int8_linear
    if (why := kernel.available(weight["codes"], weight["scale"], weight["zero_point"], device)) is not None:
        raise Unsupported(why)
    common = weight | {"bias": _tensor(site.bias), "relu": site.relu}
    if site.mode == "dynamic":
        per_token = site.x.kind == "token"
        maker = site.x.scale.producer()
        assert maker is not None
        quantize = activations.quantize_token if per_token else activations.quantize_tensor
        module = int8_linear.DynamicInt8Linear(**common, per_token=per_token)
        return Chosen(node, module, site.x.source, (maker, quantize))
    ranges = _ranges(site)
    if node.op_type == "Conv":
        return Chosen(node, int8_conv.StaticInt8Conv(**common, **ranges, **_geometry(site)), site.x.codes)
    return Chosen(node, int8_linear.StaticInt8Linear(**common, **ranges), site.x.codes)


def _float8(site: ProductSite, device: str) -> Chosen:
    """A product of 8-bit floats; activations by one calibrated scale."""
    given, w = site.input_parameters, site.weight
    if site.x is None or given is None or site.node.op_type == "Conv" or site.quantizer is not None:
        raise Unsupported("8-bit floats are multiplied by matrices, codes in and floats out")
    if w.block or w.axis not in (None, 0 if site.transposed else 1):
        raise Unsupported("weights have scales along another axis than that of the outputs")
    codes = torch.from_numpy(np.ascontiguousarray(site.codes).view(np.uint8)).view(float8_linear.FLOAT8)
    scale = torch.from_numpy(w.scale.reshape(-1).astype(np.float32))
    if (why := float8_linear.available(codes, scale, device)) is not None:
        raise Unsupported(why)
    module = float8_linear.Float8Linear(codes, scale, _tensor(site.bias), site.relu, given[0])
    return Chosen(site.node, module, site.x.codes)


def _weight(site: ProductSite) -> dict[str, Any]:
    """Codes as int8 [out, in, ...], scale [] or [out] or [out, groups], zero point in its shape or None.

    Raises:
        Unsupported: Its scales lie along another axis than the kernels' do.
    """
    w, conv = site.weight, site.node.op_type == "Conv"
    if w.bits not in (8, 4):
        raise Unsupported(f"weights of {w.bits} bits")
    codes, zero = site.codes.astype(np.int16), w.zero
    if not w.dtype.is_signed():
        middle = 1 << (w.bits - 1)
        codes, zero = codes - middle, zero - middle
    scale = w.scale
    if conv:
        if w.block or w.axis not in (None, 0):
            raise Unsupported("weights of a convolution have scales along another axis than that of the outputs")
        scale, zero = scale.reshape(-1), zero.reshape(-1)
    else:
        matrix = canonical.matrix(w, transposed=site.transposed)
        if matrix is None:
            raise Unsupported("weights have scales along another axis than that of the outputs")
        if scale.size > 1:
            shift = 0 if w.dtype.is_signed() else 1 << (w.bits - 1)
            scale, zero = matrix.scale.T, matrix.zero.T - shift
            scale, zero = (a[:, 0] if a.shape[1] == 1 else a for a in (scale, zero))
    return {
        "codes": _tensor(codes.astype(np.int8)),
        "scale": _tensor(scale.astype(np.float32)),
        "zero_point": _tensor(zero.astype(np.int8)) if zero.any() else None,
    }


def _weight_only(site: ProductSite, weight: dict[str, Any]) -> torch.nn.Module:
    if site.node.op_type == "Conv":
        raise Unsupported("torch has no convolution with low-bit weights")
    return weight_only.WeightOnlyLinear(**weight, bias=_tensor(site.bias), relu=site.relu, bits=site.weight.bits)


def _ranges(site: ProductSite) -> dict[str, Any]:
    given, made = site.input_parameters, site.output_parameters
    assert given is not None
    types = {"uint8": torch.uint8, "int8": torch.int8}
    if given[2] not in types:
        raise Unsupported(f"activations of {given[2]}")
    found: dict[str, Any] = {"input_scale": given[0], "input_zero": given[1], "input_dtype": types[given[2]]}
    if made is not None:
        found |= {"output_scale": made[0], "output_zero": made[1], "output_dtype": types[made[2]]}
    return found


def _geometry(site: ProductSite) -> dict[str, Any]:
    """Stride and so on of a convolution.

    Raises:
        Unsupported: Its padding depends on the size of what comes in.
    """
    node = site.node
    if (auto := edit.attribute(node, "auto_pad", "NOTSET")) not in ("NOTSET", "VALID", ""):
        raise Unsupported(f"auto_pad={auto} depends on the size of the picture")
    n = site.codes.ndim - 2
    pads = edit.attribute(node, "pads") if auto != "VALID" else None
    return {
        "stride": list(edit.attribute(node, "strides") or [1] * n),
        "dilation": list(edit.attribute(node, "dilations") or [1] * n),
        "padding": list(pads or [0] * (2 * n)),
        "groups": int(edit.attribute(node, "group", 1)),
    }


def _tensor(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(np.ascontiguousarray(array))
