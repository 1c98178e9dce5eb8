"""Models of more than 2 GB: loaded and saved in the memory of one tensor."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

GB = 1 << 30
TENSORS, EACH = 12, 256 << 20  # 3 GB of weights
BASE = 200 << 20  # what Python with onnx and numpy takes by itself

# Peak of what the process itself holds (anonymous memory) and of what it keeps resident, pages of files included.
CODE = """
import json, resource, sys, threading, time
from graphpress.frontends import onnx_file
peak = {}
def watch():
    while True:
        for line in open("/proc/self/status"):
            key, _, value = line.partition(":")
            if key in ("RssAnon", "RssFile"):
                peak[key] = max(peak.get(key, 0), int(value.split()[0]) << 10)
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[3]), int(sys.argv[3])))
model = onnx_file.load(sys.argv[1])
onnx_file.save(model, sys.argv[2])
print(json.dumps(peak | {"maxrss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10}))
"""


def _sparse_model(folder: Path) -> Path:
    """A chain of additions of weights that lie in a file full of holes."""
    nodes = "".join(f"v{i + 1} = Add(v{i}, w{i}) " for i in range(TENSORS))
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 13]> g (float[1] v0) => (v{TENSORS}) {{ {nodes} }}'
    )
    for i in range(TENSORS):
        tensor = onnx.TensorProto(name=f"w{i}", data_type=1, dims=[EACH // 4], data_location=onnx.TensorProto.EXTERNAL)
        for key, value in {"location": "w.bin", "offset": i * EACH, "length": EACH}.items():
            tensor.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(tensor)
    with (folder / "w.bin").open("wb") as file:
        file.truncate(TENSORS * EACH)
        for i in range(TENSORS):
            file.seek(i * EACH + 4 * i)
            file.write(b"\0\0\x80\x3f")
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.slow
def test_memory_is_bounded_by_one_tensor(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 2 * TENSORS * EACH:
        pytest.skip("no room for the file that is written")
    path, saved = _sparse_model(tmp_path), tmp_path / "saved.onnx"
    cap = EACH + BASE + (resource.getpagesize() << 4)
    done = subprocess.run([sys.executable, "-c", CODE, path, saved, str(cap)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout)
    assert peak["RssAnon"] < BASE
    assert peak["maxrss"] < BASE + EACH
    data = Path(f"{saved}.data")
    assert data.stat().st_size == TENSORS * EACH > 2 * GB
    with data.open("rb") as file:
        for i in range(TENSORS):
            file.seek(i * EACH + 4 * i)
            assert file.read(4) == b"\0\0\x80\x3f"
    proto = onnx.load(saved, load_external_data=False)
    assert [next(int(e.value) for e in t.external_data if e.key == "offset") for t in proto.graph.initializer] == [
        i * EACH for i in range(TENSORS)
    ]
