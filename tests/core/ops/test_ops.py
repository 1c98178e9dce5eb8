"""Every operator of the dialect: its body runs in stock ONNX Runtime, its kernel means the same, misuse is refused."""

import numpy as np
import onnx_ir as ir
import pytest

from graphpress import catalog
from graphpress.errors import VerifyError
from graphpress.graph import edit, verify
from graphpress.ops.base import DOMAIN, attach
from graphpress.ops.dynamic_quantize_token import OP as TOKEN
from tests import kit

OPS = list(catalog.ops().values())


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_an_op_is_named_as_its_function(op) -> None:
    function = op.function()
    assert (function.domain, function.name) == (DOMAIN, op.name)
    assert function.opset_imports[""] == op.opset


def token_model(dims: str = "N, 3, 8") -> ir.Model:
    model = kit.parse(f"g (float[{dims}] x) => (int8[{dims}] q, float[N, 3, 1] s) {{ q, s = Identity(x) }}")
    node = model.graph.node(0)
    new = edit.new_node(TOKEN.name, [node.inputs[0]], before=node, outputs=2, domain=DOMAIN)
    for old, value in zip(list(node.outputs), new.outputs, strict=True):
        edit.like(value, old)
        edit.replace(old, value)
    edit.remove([node])
    attach(model, TOKEN)
    verify.check(model)
    return model


def rows() -> np.ndarray:
    sizes = 10.0 ** np.arange(-7, 8).reshape(5, 3, 1)
    x = (np.random.default_rng(0).normal(size=(5, 3, 8)) * sizes).astype(np.float32)
    x[0, 0] = 0
    x[1, 1] = np.float32(1e-40)  # subnormal: the scale must not become zero
    return x


def test_token_scales_by_row_in_onnx_runtime() -> None:
    x = rows()
    out = kit.run(token_model(), {"x": x})
    largest = np.abs(x).max(-1, keepdims=True)
    scale = np.maximum(largest / np.float32(127), np.finfo(np.float32).tiny)
    np.testing.assert_array_equal(out["s"], scale)
    np.testing.assert_array_equal(out["q"], np.rint(x / scale))
    normal = largest[..., 0] > 1e-30
    assert (np.abs(out["q"]).max(-1)[normal] == 127).all()  # the whole range is used, and no more


def test_token_kernel_means_the_same() -> None:
    torch = pytest.importorskip("torch")
    x = rows()
    q, scale = TOKEN.kernel()(torch.from_numpy(x))
    out = kit.run(token_model(), {"x": x})
    np.testing.assert_array_equal(q.numpy(), out["q"])
    np.testing.assert_array_equal(scale.numpy(), out["s"])


def test_token_takes_float32_only() -> None:
    model = token_model()
    model.graph.inputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    with pytest.raises(VerifyError, match="float32, not"):
        verify.check(model)
