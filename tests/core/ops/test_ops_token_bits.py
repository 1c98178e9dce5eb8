"""DynamicQuantizeToken with fewer than 8 bits: body, kernel, gradient form and misuse."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphpress.errors import VerifyError
from graphpress.graph import verify
from graphpress.ops.dynamic_quantize_token import OP, bits_of
from tests import kit
from tests.core.ops.test_ops import rows, token_model


def with_bits(bits: int) -> ir.Model:
    model = token_model()
    model.graph.node(0).attributes.add(ir.AttrInt64("bits", bits))
    verify.check(model)
    return model


def expected(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scale as documented, in float32."""
    largest = np.abs(x).max(-1, keepdims=True)
    span = np.float32(127 if bits == 8 else 2 ** (bits - 1) - 0.5)
    scale = np.maximum(largest / span, np.finfo(np.float32).tiny)
    return np.minimum(np.rint(x / scale), 2 ** (bits - 1) - 1), scale


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("optimize", [False, True])
def test_body_in_onnx_runtime(bits: int, optimize: bool) -> None:
    out = kit.run(with_bits(bits), {"x": rows()}, optimize)
    codes, scale = expected(rows(), bits)
    np.testing.assert_array_equal(out["s"], scale)
    np.testing.assert_array_equal(out["q"], codes)
    assert out["q"].dtype == np.int8
    assert out["q"].max() == 2 ** (bits - 1) - 1 and out["q"].min() >= -(2 ** (bits - 1))


@pytest.mark.parametrize("bits", range(2, 8))
def test_no_element_is_further_than_half_a_step_from_its_code(bits: int) -> None:
    x = rows()[2:]
    codes, scale = expected(x, bits)
    assert (np.abs(codes * scale - x) <= 0.5001 * scale).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_kernel_and_the_form_with_gradients_mean_the_same(bits: int) -> None:
    torch = pytest.importorskip("torch")
    from graphpress.backends.fx.ops.quantization import STRAIGHT_THROUGH

    x = torch.from_numpy(rows()).requires_grad_()
    out = kit.run(with_bits(bits), {"x": rows()})
    for function in (OP.kernel(), STRAIGHT_THROUGH[OP.name]):
        q, scale = function(x, bits=bits)
        np.testing.assert_array_equal(q.detach().numpy(), out["q"])
        np.testing.assert_array_equal(scale.detach().numpy(), out["s"])
    q.sum().backward()
    torch.testing.assert_close(x.grad, (1 / scale).expand_as(x))  # the last form's: straight through the rounding


def test_misuse() -> None:
    model = token_model()
    assert bits_of(model.graph.node(0)) == 8
    for bits in (1, 9):
        with pytest.raises(VerifyError, match="2 to 8 bits"):
            with_bits(bits)
