"""What can be asked of quantization, and the schemes that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, Self, TypeAlias

from graphpress import catalog
from graphpress.contracts import Ignores, Overrides
from graphpress.errors import BadRequest
from graphpress.graph.selectors import exactly
from graphpress.observe.observers import OBSERVERS
from graphpress.passes.quantizers.named import named
from graphpress.typed import Known
from graphpress.types import AFFINE, PER_TENSOR, PER_TOKEN, ActivationType, Granularity, Scheme, Storage, WeightType

Mode: TypeAlias = Literal["static", "dynamic", "weight"]
Kernels: TypeAlias = Literal["required", "preferred"]

FLOAT8 = "float8"  # the quantizer of weights of 8-bit floats
SIGNS = ("binary", "ternary")  # types of codes, and the quantizers of these
_FLOAT_OBSERVERS = ("minmax", "moving_average", "percentile")
TOKEN_TYPES = ("int8", "int4")  # of activations that are quantized by token


def weight_observers() -> list[str]:
    """All that some number format knows."""
    return list(dict.fromkeys(o for quantizer in catalog.quantizers().values() for o in quantizer.observers))


@dataclass(frozen=True)
class QuantizeOptions(Ignores, Overrides):
    """What to quantize and how.

    Attributes:
        mode: ``static`` (activation ranges from calibration data), ``dynamic`` (found at run time) or ``weight``
            (activations stay float).
        weight: Storage type of weights. int3, ternary (-1, 0, 1) and binary (-1, 1) stand in int4 tensors for kernels,
            and take 3, 1.6 and 1 bits in a file (``pack-codes``). float8e4m3fn and float8e5m2 are floats of 8 bits.
        weight_granularity: How many scales a weight has.
        group_size: Elements that share a scale where weight_granularity is per_group; a power of two from 16 to 256.
        weight_symmetric: Weights without a zero point.
        weight_observer: How the range of a weight is found: minmax, mse; of affine ones also l4: the least fourth power
            of errors; and hqq: few large errors, by half-quadratic splitting, without data.
        quantizer: The number format of weights, by its name, with options behind a colon: ``affine`` (evenly spaced),
            ``power:exponent=search``, ``tlq``, ``points``. These decode by a table, on integer kernels if
            that holds 8-bit integers.
        activation: Storage type of activations; None: the one that is fast on the target, or int8 for per_token, which
            also takes int4. 8-bit floats go with weights that are such (static only, observer minmax, moving_average
            or percentile).
        activation_granularity: per_tensor, or per_token (dynamic only: one scale for each row of the last axis).
        activation_symmetric: Activations without a zero point. Asymmetric ones absorb a Relu.
        observer: How the range of an activation is found; ``percentile:99.9`` says the share that is kept.
        attention: Quantize MatMul and Gemm of two computed tensors as well; None: where mode is static.
        embeddings: Quantize the tables of Gather as well (weights only).
        fallback: Modes to try, in order, for an operator that the target cannot run in ``mode``. ``dynamic`` beside
            per_token gives what has no tokens, such as a convolution, one scale found at run time, in 8 bits.
        kernels: ``required``: what the target has no low-bit kernel for gets another format or stays float.
            ``preferred``: it is quantized as asked all the same, for its size or to learn what it costs in accuracy,
            and computed in float; the report names it.
        ends: What layers get that no other layer stands before, or none behind: ``same``; 8 bits for weights and
            activations (``int8``), as papers have it below 8 bits; or ``float``. Their rounding errors go through the
            whole model, or meet the result unmixed. A diffusion model predicts what its input holds: most of what a
            U-Net loses in 8 bits is the rounding of that input.
        op_types: Only these operators; empty: all that can be, except Softmax, whose input loses too much in 8 bits.
        ignore: Selectors of nodes that stay float: exact names, globs, or ``re:`` and a regular expression.
        sites: Overrides all of the above: selector of nodes, or a site such as ``conv1[1] weight``, to ``float`` or to
            a scheme in words, such as ``int4 per_group:32 asym mse``; what is not said stays as planned.
    """

    mode: Mode = "static"
    weight: WeightType = "int8"
    weight_granularity: Literal["per_tensor", "per_channel", "per_group"] = "per_channel"
    group_size: int = 64
    weight_symmetric: bool = True
    weight_observer: Annotated[str, Known(weight_observers)] = "minmax"
    quantizer: Annotated[str, Known(catalog.quantizers)] = AFFINE
    activation: ActivationType | None = None
    activation_granularity: Literal["per_tensor", "per_token"] = "per_tensor"
    activation_symmetric: bool = False
    observer: Annotated[str, Known(lambda: OBSERVERS)] = "minmax"
    attention: bool | None = None
    embeddings: bool = True
    fallback: tuple[Mode, ...] = ()
    kernels: Kernels = "required"
    ends: Literal["same", "int8", "float"] = "same"
    op_types: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    sites: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.activation_granularity == "per_token" and self.mode != "dynamic":
            raise _wrong("activation_granularity", "per_token scales are found at run time", "Set mode: dynamic.")
        if self.mode == "weight" and self.activation is not None:
            raise _wrong("activation", "mode weight leaves activations float", "Set mode: static or dynamic.")
        if self.mode == "dynamic" and self.activation not in (None, *self._dynamic):
            known = " or ".join(self._dynamic)
            raise _wrong("activation", f"{self.activation_granularity} scales found at run time are {known}")
        if self.group_size not in (16, 32, 64, 128, 256):
            raise _wrong("group_size", f"{self.group_size} is none of 16, 32, 64, 128, 256")
        scheme = self.weight_scheme(PER_TENSOR)
        named(scheme.quantizer).check(scheme, "quantize: option 'quantizer'")
        self._check_floats()

    def _check_floats(self) -> None:
        """8-bit floats on both sides of a product or on none, of ranges that are no sums over even steps."""
        small = [d for d in (self.weight, self.activation) if d is not None and Storage.of(d).floating]
        if self.activation not in small:
            if small and self.mode != "weight":
                raise _wrong(
                    "activation", f"weights of {self.weight} are multiplied by such floats", "Set activation too."
                )
            return
        if self.weight not in small:
            raise _wrong("weight", f"activations of {self.activation} are multiplied by such floats", "Set weight too.")
        if self.mode != "static":
            raise _wrong("activation", f"{self.activation} has ranges from calibration", "Set mode: static.")
        if self.observer.partition(":")[0] not in _FLOAT_OBSERVERS:
            raise _wrong("observer", f"{self.observer!r} is for even steps", f"Take {' or '.join(_FLOAT_OBSERVERS)}.")

    def without(self, names: Iterable[str]) -> Self:
        """The same with these nodes in float, whatever ``sites`` says of them."""
        names = list(names)
        left = super().without(names)
        if not self.sites or not names:
            return left
        return replace(left, sites={**self.sites, **dict.fromkeys(map(exactly, names), "float")})

    @property
    def wider(self) -> Self:
        """For layers at the ends, where ``ends`` says that they get 8 bits."""
        if self.ends != "int8":
            return self
        return replace(self, weight="int8", quantizer=AFFINE, activation=None, ends="same")

    @property
    def whole(self) -> Self:
        """For what has no tokens: one scale found at run time."""
        if self.activation_granularity == "per_tensor":
            return self
        return replace(self, activation_granularity="per_tensor", activation=None)

    @property
    def _dynamic(self) -> tuple[str, ...]:
        return TOKEN_TYPES if self.activation_granularity == "per_token" else ("uint8",)

    def weight_scheme(self, granularity: Granularity) -> Scheme:
        """How a weight is stored."""
        quantizer = of_type(self.weight) if self.quantizer == AFFINE else self.quantizer
        return Scheme(
            self.weight, granularity, self.weight_symmetric, observer=self.weight_observer, quantizer=quantizer
        )

    def activation_scheme(self, mode: Mode, native: str, recurrent: bool = False) -> Scheme:
        """How an activation is stored; ``native`` is the type that is fast on the target.

        Recurrent operators quantize each step as a whole, so they know no tokens.
        """
        if mode == "static":
            dtype = self.activation or native
            symmetric = self.activation_symmetric or Storage.of(dtype).floating
            return Scheme(dtype, PER_TENSOR, symmetric, observer=self.observer)
        if self.activation_granularity == "per_token" and not recurrent:
            return Scheme(self.activation or "int8", PER_TOKEN, dynamic=True)
        return Scheme("uint8", PER_TENSOR, symmetric=False, dynamic=True)


def of_type(dtype: str) -> str:
    """The quantizer of weights of a type that belongs to one: of 8-bit floats, of signs; else affine."""
    if dtype in SIGNS:
        return dtype
    return FLOAT8 if Storage.of(dtype).floating else AFFINE


def _wrong(option: str, what: str, fix: str = "") -> BadRequest:
    return BadRequest(what, where=f"quantize: option {option!r}", fix=fix)
