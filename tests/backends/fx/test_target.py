"""The table of torch-cpu says nothing that this torch does not do: every variant of it is built and run."""

from __future__ import annotations

import numpy as np
import pytest

from graphpress.backends import fx
from graphpress.backends.ort import probe
from graphpress.capability import Capability
from graphpress.target import Target
from tests import kit

TARGET = Target.load("torch-cpu")


@pytest.mark.parametrize("c", TARGET.capabilities, ids=lambda c: f"{c.op}-{c.mode}-{'-'.join(map(str, c.conditions))}")
def test_every_variant_of_a_capability_runs_on_its_kernel(c: Capability) -> None:
    for variant in probe.variants(c):
        model = probe.build(c, variant, largest=TARGET.exact_codes)  # wider codes overflow without VNNI: refused
        feeds = kit.random_feeds(model)
        row = next(r for r in fx.audit(fx.lower(model, TARGET), TARGET, feeds).sites if r.node == c.op)
        assert row.verdict == ("weight-only" if c.mode == "weight" else "integer"), f"{variant}: {row.reason}"
        assert row.kernel in ({c.kernel} if c.kernel else {"aten::mm", "aten::addmm"}), str(variant)
        given, exact = fx.execute(fx.lower(model, TARGET))(feeds), kit.run(model, feeds)
        for name, expected in exact.items():
            step = 0.05 if c.output == "optional" else 1e-4 * np.abs(expected).max()  # of the output's quantizer
            assert np.abs(given[name] - expected).max() <= 1.01 * step, str(variant)


def test_the_cuda_table_has_the_operators_of_the_cpu_but_convolution() -> None:
    cuda = Target.load("torch-cuda", "x86-64+vnni")
    assert {(c.op, c.mode) for c in TARGET.capabilities} - {(c.op, c.mode) for c in cuda.capabilities} == {
        ("Conv", "static")
    }
