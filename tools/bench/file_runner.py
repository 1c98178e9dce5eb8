"""The model file as anyone runs it: a stock ONNX Runtime session, nothing of ours in between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from graphpress.runner import Arrays


class FileRunner:
    """A ``Runner`` on an ONNX file with ONNX Runtime's default optimisations, on the CPU.

    Args:
        path: The model.
        threads: Threads inside one operator.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        # A pool that spins after its run takes a core from the model timed next to it. With this, a model against
        # itself takes 0.99 to 1.00 times its time; by default 0.76 to 1.06.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input_names: Sequence[str] = [i.name for i in self._session.get_inputs()]
        self.output_names: Sequence[str] = [o.name for o in self._session.get_outputs()]

    def __call__(self, feeds: Arrays) -> dict[str, np.ndarray]:
        return dict(zip(self.output_names, self._session.run(self.output_names, dict(feeds)), strict=True))
