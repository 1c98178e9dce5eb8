"""Let learners multiply in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from graphpress import keys
from graphpress.context import Context
from graphpress.contracts import Pass, PassReport
from graphpress.errors import BadRequest
from graphpress.graph import edit, opsets
from graphpress.ops.acm import INPUTS
from graphpress.passes.acm.site import AcmSite, sites
from graphpress.passes.quantizers.affine import AFFINE
from graphpress.types import PER_TOKEN, Numerics, Role, Scheme, Site, Stage, per_group


@dataclass(frozen=True)
class QuantizeLearners(Pass):
    """Store the weights of learners as int8, one scale for each column of each learner, and quantize what they read.

    Rows of the input and of the hidden units get one scale each at run time, so that a token's result does not depend
    on its neighbours. Gates stay float: they cost little and decide much.

    Attributes:
        observer: How a column's range is found: ``minmax`` or ``mse``.
    """

    name: ClassVar[str] = "quantize-learners"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    gives: ClassVar[Stage | None] = Stage.QDQ

    observer: Literal["minmax", "mse"] = "mse"

    def __post_init__(self) -> None:
        if self.observer not in ("minmax", "mse"):
            raise BadRequest(f"{self.observer!r} is neither minmax nor mse", where="quantize-learners")

    def run(self, model: ir.Model, ctx: Context, report: PassReport) -> None:
        found = sites(model)
        if not found:
            report.skip("model", "it has no ACM")
            return
        todo = [s for s in found if not s.form[2]]
        for s in found:
            if s not in todo:
                report.skip(s.node, "its learners multiply in 8 bits already")
        opsets.require(model, 21)  # scales by block
        for s in ctx.progress(todo, "learners", len(todo)):
            for name in ("w1", "w2"):
                self._store(s, name)
            s.node.attributes.update({"int8": ir.AttrInt64("int8", 1)})
            keys.note_schemes(s.node, self._schemes(s))
            report.changed += 1

    def _schemes(self, s: AcmSite) -> dict[Site, Scheme]:
        name, x = s.node.name or "", Scheme("int8", PER_TOKEN, dynamic=True)
        weights = {Site(name, INPUTS.index(w), Role.WEIGHT): self._weight(s.array(w)) for w in ("w1", "w2")}
        return weights | {Site(name, INPUTS.index("x"), Role.ACTIVATION): x}

    def _weight(self, array: np.ndarray) -> Scheme:
        """Of [learners, in, out]: a scale for each learner's columns."""
        return Scheme("int8", per_group(1, array.shape[1]), observer=self.observer)

    def _store(self, s: AcmSite, name: str) -> None:
        value = s.value(name)
        array = s.array(name)
        params = AFFINE.fit(array, self._weight(array))
        graph = s.node.graph
        assert isinstance(graph, ir.Graph)
        scale = edit.add_const(graph, np.asarray(params.scale, np.float32), f"{value.name}_scale")
        zero = edit.add_const(graph, np.zeros(params.scale.shape, np.int8), f"{value.name}_zero_point")
        attributes = {"axis": 1, "block_size": array.shape[1]}
        q = edit.new_node("QuantizeLinear", [value, scale, zero], attributes, before=s.node, origin=s.node)
        edit.like(q.outputs[0], value, ir.DataType.INT8)
        dq = edit.new_node("DequantizeLinear", [q.outputs[0], scale, zero], attributes, before=s.node, origin=s.node)
        edit.set_input(s.node, INPUTS.index(name), edit.like(dq.outputs[0], value))
