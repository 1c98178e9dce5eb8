"""Names of tensors that Python does not take as they are."""

from __future__ import annotations

import numpy as np
import torch

from graphpress.backends import fx as backend
from graphpress.backends.fx import shelf
from tests.backends.given import parse


def test_keywords_and_names_of_modules_own_attributes() -> None:
    graph = parse(
        """g (float[2] x, float[2] p, float[2] q, float[2] r) => (float[2] y) {
            a = Add(x, p)  b = Add(a, q)  y = Add(b, r)
        }""",
        p=np.ones(2, np.float32), q=np.full(2, 2, np.float32), r=np.full(2, 3, np.float32),
    )  # fmt: skip
    for value, name in zip(list(graph.graph.initializers.values()), ("in.class", "type.weight", "type"), strict=True):
        value.name = name
    built = backend.build(graph)
    assert built(torch.zeros(2)).tolist() == [6, 6]
    assert set(built.state_dict()) == {"in_1.class_1", "type_1.weight", "type_2"}


def test_a_tensor_whose_name_begins_anothers() -> None:
    root = torch.nn.Module()
    assert shelf.place(root, "a.b", torch.zeros(1)) == "a.b"
    assert shelf.place(root, "a.b.c", torch.ones(1)) == "a.b_1.c"
    assert shelf.place(root, "a.b.d", torch.ones(1)) == "a.b_1.d"
    assert shelf.place(root, "a.b_1", torch.ones(1)) == "a.b_1_1"
    assert len(root.state_dict()) == 4
