"""State files: what is written comes back under its key, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphpress.errors import BadRequest
from graphpress.observe import statefile


def test_what_is_written_comes_back_under_its_key_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    arrays = {"file": np.arange(3), "a:b/c": np.float32(2.5), "none": np.zeros((0, 2), np.uint8)}
    statefile.write(path, "state of x", "k", arrays, {"n": 1, "curve": [[0, None]]})
    found = statefile.read(path, "state of x", "k")
    assert found is not None
    assert found[1] == {"n": 1, "curve": [[0, None]]}
    assert found[0].keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[0][name], array)
        assert found[0][name].dtype == array.dtype
    assert statefile.read(path, "state of x", "other") is None
    assert statefile.read(tmp_path / "none", "state of x", "k") is None
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("make", ["kind", "bytes", "npz", "head"])
def test_what_is_something_else_is_refused_and_left(tmp_path: Path, make: str) -> None:
    path = tmp_path / "s"
    if make == "kind":
        statefile.write(path, "state of y", "k", {}, {})
    elif make == "bytes":
        path.write_bytes(b"precious")
    else:
        with path.open("wb") as f:
            np.savez(f, **({"a": np.zeros(1)} if make == "npz" else {"graphpress": np.asarray("[1]")}))
    before = path.read_bytes()
    with pytest.raises(BadRequest, match=r"s: the file is no state of x\. Delete it"):
        statefile.read(path, "state of x", "k")
    assert path.read_bytes() == before
