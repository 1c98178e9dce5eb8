"""The ACMs of a graph: their weights, sizes and work, and the budget that they share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphpress.errors import BadRequest
from graphpress.graph import edit
from graphpress.graph.quantized import unquantized
from graphpress.keys import OPTION, ROLE
from graphpress.ops.acm import INPUTS, gate_macs, learner_macs
from graphpress.ops.base import DOMAIN

PARAMETERS = ("gate", "gate_bias", "w1", "b1", "w2", "b2")


@dataclass(frozen=True, eq=False)
class AcmSite:
    """One ``graphpress::ACM`` node with constant weights; with Q -> DQ before a weight, what went into those."""

    node: ir.Node

    @property
    def name(self) -> str:
        return self.node.name or ""

    def value(self, name: str) -> ir.Value:
        """The input of that name (see ``ops.acm.INPUTS``)."""
        value = unquantized(self.node.inputs[INPUTS.index(name)])
        assert value is not None
        return value

    def array(self, name: str) -> np.ndarray:
        """The constant of that name."""
        array = edit.constant(self.value(name))
        assert array is not None, name
        return array

    def set(self, name: str, array: np.ndarray) -> None:
        """Give a constant another array, float32."""
        edit.overwrite(self.value(name), np.ascontiguousarray(array, np.float32))

    @property
    def input(self) -> ir.Value:
        """[..., width]."""
        return self.value("x")

    @property
    def output(self) -> ir.Value:
        """[..., out]."""
        return self.node.outputs[0]

    @property
    def taken(self) -> ir.Value:
        """[...]: the number of learners that each token takes."""
        return self.node.outputs[1]

    @property
    def least(self) -> int:
        """The fewest learners that a token may take."""
        return int(edit.attribute(self.node, "min_learners"))

    @property
    def form(self) -> tuple[str, bool, bool]:
        """(activation, gated, int8), as ``ops.acm_torch`` wants it."""
        attributes = (edit.attribute(self.node, n) for n in ("activation", "gated", "int8"))
        activation, gated, int8 = attributes
        return str(activation), bool(gated), bool(int8)

    @property
    def learners(self) -> int:
        """N."""
        return _shape(self.value("w1"))[0]

    @property
    def learner_macs(self) -> int:
        """Multiply-adds of one learner for one token."""
        return learner_macs(_shape(self.value("w1")), _shape(self.value("w2")))

    @property
    def gate_macs(self) -> int:
        """Multiply-adds of the gate for one token: paid by every token, whatever it takes."""
        return gate_macs(_shape(self.value("gate")))

    def macs(self, taken: float, tokens: int = 1) -> float:
        """Multiply-adds of ``tokens`` tokens that take ``taken`` learners on average."""
        return tokens * (self.gate_macs + taken * self.learner_macs)


def _shape(value: ir.Value) -> tuple[int, ...]:
    tensor = edit.constant_tensor(value)
    assert tensor is not None
    return tuple(tensor.shape.numpy())


def sites(model: ir.Model) -> list[AcmSite]:
    """The ACMs of the main graph with constant weights, in its order."""
    found = [AcmSite(n) for n in model.graph if (n.domain, n.op_type) == (DOMAIN, "ACM")]
    return [s for s in found if all(edit.is_constant(s.value(p)) for p in PARAMETERS)]


def share(found: list[AcmSite], means: list[float]) -> float:
    """Share of all learners that is taken, each counted with its work, where a token takes ``means`` on average."""
    work = sum(s.learner_macs * m for s, m in zip(found, means, strict=True))
    return work / max(sum(s.learner_macs * s.learners for s in found), 1)


def price_node(model: ir.Model) -> ir.Node | None:
    """The node that turns the budget into a price, if the model has one."""
    return next((n for n in model.graph if (n.domain, n.op_type) == (DOMAIN, "ACMPrice")), None)


def set_table(model: ir.Model, knots: np.ndarray, prices: np.ndarray) -> None:
    """Put in what each budget costs: knots rise to 1, prices do not rise."""
    node = price_node(model)
    assert node is not None
    for slot, array in ((1, knots), (2, prices)):
        value = node.inputs[slot]
        assert value is not None
        edit.overwrite(value, np.asarray(array, np.float32))


def set_budget(model: ir.Model, budget: float) -> None:
    """The budget that holds where the caller gives none."""
    node = price_node(model)
    value = node.inputs[0] if node is not None else None
    assert value is not None
    edit.overwrite(value, np.array(budget, np.float32))


def add_budget(model: ir.Model, budget: float, knots: np.ndarray, prices: np.ndarray) -> ir.Value:
    """The price that all ACMs of a model share, from an input ``budget`` with a default; made where there is none."""
    from graphpress.ops.acm_price import OP
    from graphpress.ops.base import attach

    if (node := price_node(model)) is not None:
        return node.outputs[0]
    graph = model.graph
    value = edit.add_const(graph, np.array(budget, np.float32), "budget")
    value.metadata_props[OPTION] = "budget"
    graph.inputs.append(value)
    arrays = {"budget_knots": knots, "budget_prices": prices}
    table = [edit.add_const(graph, np.asarray(a, np.float32), n) for n, a in arrays.items()]
    for constant in table:
        constant.metadata_props[ROLE] = "buffer"  # nothing to train
    first = next(iter(graph))
    made = edit.new_node(OP.name, [value, *table], before=first, domain=DOMAIN, name="budget_price")
    made.outputs[0].type, made.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    attach(model, OP)
    return made.outputs[0]


def check_budget(budget: float, where: str) -> None:
    """Raise unless 0 < budget <= 1.

    Raises:
        BadRequest: Names the option.
    """
    if not 0 < budget <= 1:
        raise BadRequest(
            f"a budget is the share of the learners that may run: above 0 and at most 1, not {budget}", where=where
        )
