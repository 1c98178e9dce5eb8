"""Formats by name: ``w4a16-g64`` is 4-bit weights in groups of 64 with float activations."""

from __future__ import annotations

import re
from typing import cast

from graphpress import catalog
from graphpress.errors import BadRequest, nearest
from graphpress.passes.quantize.quantize_options import FLOAT8, SIGNS, Mode, QuantizeOptions
from graphpress.types import AFFINE, WeightType

FLOAT = "float"
DEFAULT = ("w8a8", "w8a8-dynamic", "w8a16", "w4a8", "w4a16-asym", "w4a16-g64-asym", "w2a16-g32-asym")
_NAME = re.compile(
    r"w(?P<bits>1|2|3|4|8)a(?P<activation>8|16)(?P<run>-dynamic|-token)?(-g(?P<group>\d+))?(?P<asym>-asym)?"
    r"(-(?P<quantizer>[a-z]\w*)(?P<options>:.+)?)?"
)


def parse(name: str) -> QuantizeOptions:
    """The options of quantization that a name stands for.

    ``w2``, ``w3``, ``w4``, ``w8``: bits of the weights, per channel or, with ``-g64``, in groups; ``-asym`` gives them
    zero points. ``w1`` are binary ones, ``w2a16-ternary`` of three values. ``a16``: activations stay float. ``a8``: 8
    bits with calibrated ranges, or ranges found at run time, per tensor (``-dynamic``) or per row (``-token``). A
    quantizer stands last: ``w4a8-power``, ``w3a16-tlq``, ``w4a16-g16-nvfp4``, ``w8a8-float8``. Ranges are those of
    least squared error, for 8-bit weights the extremes.

    Raises:
        BadRequest: The name says nothing of that kind, or a group size that there is not.
    """
    found = _NAME.fullmatch(name)
    known = found is not None and found["quantizer"] in (None, *catalog.quantizers())
    if found is None or not known or _clash(found):
        raise BadRequest(
            "is no format", where=f"allocate: option 'formats', {name!r}",
            fix=f"{nearest(name, DEFAULT)} A name is w1|w2|w3|w4|w8, a8|a16, -dynamic, -token, -g64, -asym, -FORMAT.",
        )  # fmt: skip
    bits, asym = int(found["bits"]), bool(found["asym"])
    mode: Mode = "weight" if found["activation"] == "16" else ("dynamic" if found["run"] else "static")
    small = found["quantizer"] == FLOAT8
    return QuantizeOptions(
        mode=mode,
        weight=cast("WeightType", _weight(bits, asym, found["quantizer"])),
        activation="float8e4m3fn" if small and mode == "static" else None,
        weight_granularity="per_group" if found["group"] else "per_channel",
        group_size=int(found["group"] or 64),
        weight_symmetric=not asym,
        weight_observer="minmax" if bits == 8 else "mse",
        quantizer=(found["quantizer"] or AFFINE) + (found["options"] or ""),
        activation_granularity="per_token" if found["run"] == "-token" else "per_tensor",
        observer="minmax" if small else "mse",
    )


def _weight(bits: int, asym: bool, quantizer: str | None) -> str:
    """The type of codes."""
    if quantizer == FLOAT8:
        return "float8e4m3fn"
    if bits == 1 or quantizer in SIGNS:
        return quantizer or SIGNS[0]
    return f"{'u' if asym else ''}int{bits}"


def _clash(found: re.Match[str]) -> bool:
    """Whether parts of a name do not go together."""
    small, bits = found["quantizer"] == FLOAT8, found["bits"]
    wanted = {"1": (None, SIGNS[0]), "2": (*SIGNS[1:],)}.get(bits, ())
    signs = found["quantizer"] in SIGNS or bits == "1"
    at_run_time = found["run"] and (found["activation"] == "16" or small)
    unlike = signs and (found["quantizer"] not in wanted or bool(found["asym"]))
    return bool(at_run_time or unlike or (bits == "3" and found["asym"]) or (small and bits != "8"))
