"""Typed metadata: what is set is got, also through a file; what somebody else wrote there is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest

import graphpress as gp
from graphpress import keys
from graphpress.errors import InvalidModel
from graphpress.types import Stage
from tests import kit

JSON = {"a": [1, 2.5, None], "b": {"c": "ü"}}
VALUES = {keys.STAGE: Stage.QDQ, keys.SOURCE: JSON, keys.UNUSED: JSON, keys.ADAPTED: JSON, keys.SIGNATURE: JSON}


@pytest.mark.parametrize("key", VALUES, ids=str)
def test_what_is_set_is_got_and_survives_a_file(key: keys.Key, tmp_path: Path) -> None:
    model = kit.parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    assert key.get(model) is None
    key.set(model, VALUES[key])
    gp.save(model, tmp_path / "m.onnx")
    again = gp.load(tmp_path / "m.onnx")
    assert key.get(again) == VALUES[key]
    assert type(next(k for k in model.metadata_props if k == key)) is str  # nothing of ours lies in the model


@pytest.mark.parametrize(("key", "text"), [(keys.STAGE, "flaot"), (keys.SOURCE, "{"), (keys.UNUSED, "")])
def test_what_cannot_be_read_is_refused_by_name(key: keys.Key, text: str) -> None:
    model = kit.parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    model.metadata_props[key] = text
    with pytest.raises(InvalidModel, match=f"model: its {key} cannot be read: '{text}'. Remove"):
        key.get(model)


def test_what_was_folded_into_a_parameter_is_noted_once_and_last() -> None:
    value = ir.Value(name="w")
    assert keys.steps(value) == []
    keys.note_scaled(value)
    assert json.loads(value.metadata_props["graphpress.source"]) == {"parameter": "w", "transform": "scale"}
    keys.SOURCE.set(value, {"parameter": "fc.weight", "transform": "transpose+scale+cast", "shared": True})
    keys.note_scaled(value)
    keys.note_scaled(value)
    assert keys.steps(value) == ["transpose", "cast", "scale"]
    assert keys.SOURCE.get(value) == {"parameter": "fc.weight", "transform": "transpose+cast+scale", "shared": True}
