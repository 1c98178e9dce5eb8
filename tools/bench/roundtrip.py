"""Does every model of the zoo come through load and save unchanged? Run before and after in ONNX Runtime without graph
optimisation, on the same random inputs; outputs have to be equal bit for bit.

    python -m graphpress.tools.bench.roundtrip --zoo DIR
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from graphpress.errors import GraphpressError
from graphpress.frontends import onnx_file
from graphpress.tools.conformance import inputs

EQUAL, REFUSED, RUNTIME, NOT_RUN, DIFFERS = "equal", "refused", "refused by the runtime", "not runnable", "DIFFERS"
MEANING = {
    EQUAL: "loads, saves, and gives the same outputs bit for bit",
    REFUSED: "is not accepted, with this one error",
    RUNTIME: "loads and saves; ONNX Runtime accepts neither the file nor what we saved, for the same reason",
    NOT_RUN: "loads and saves; ONNX Runtime opens both but no random input makes either run, for the same reason",
    DIFFERS: "shows a defect of ours",
}


@dataclass(frozen=True)
class RoundTrip:
    """What became of one file."""

    file: str
    status: str
    reason: str = ""


class _Failed(Exception):
    """ONNX Runtime does not take the model; the message is stripped of paths and names."""


def round_trip(path: Path, name: str = "") -> RoundTrip:
    """Load ``path``, save it and compare."""
    name = name or path.name
    try:
        model = onnx_file.load(path)
    except GraphpressError as e:
        return RoundTrip(name, REFUSED, str(e).replace(f"{path}: ", "").replace(str(path), path.name))
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model.onnx"
        onnx_file.save(model, saved)
        try:
            before = _open(path)
        except _Failed as e:
            return _same_refusal(name, saved, str(e))
        try:
            after = _open(saved)
        except _Failed as e:
            return RoundTrip(name, DIFFERS, f"only the saved file is refused: {e}")
        return RoundTrip(name, *_compare(before, after))


def _open(path: Path) -> ort.InferenceSession:
    ort.set_seed(inputs.SEED)  # operators that draw numbers draw the same ones
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")  # it rounds constants and inputs differently
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # whatever it refuses the file for is what is compared
        raise _Failed(_reason(e, path)) from e


def _reason(error: Exception, path: Path | None = None) -> str:
    text = str(error).replace(str(path), "the model") if path else str(error)
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : |(?:/\S+)?/(?=[\w.]+\.(?:cc|h)\b)|0x[0-9a-f]+", "", text)
    text = re.sub(r"(?i)(node[^'\"(]{0,12}[:( ]+)(['\"(]?)[\w./:-]*\2", r"\1", text)  # unnamed nodes have got names
    return " ".join(text.split())[:240]


def _same_refusal(name: str, saved: Path, cause: str) -> RoundTrip:
    try:
        _open(saved)
    except _Failed as e:
        if str(e) == cause:
            return RoundTrip(name, RUNTIME, cause)
        return RoundTrip(name, DIFFERS, f"refused for {cause!r}, then for {str(e)!r}")
    return RoundTrip(name, DIFFERS, f"only the original is refused: {cause}")


def _compare(before: ort.InferenceSession, after: ort.InferenceSession) -> tuple[str, str]:
    if [o.name for o in before.get_outputs()] != [o.name for o in after.get_outputs()]:
        return DIFFERS, "the outputs have other names"
    reason = ""
    for given in inputs.feeds(before.get_inputs()):
        first, second = _run(before, given), _run(after, given)
        if isinstance(first, str) or isinstance(second, str):
            if first != second and not (isinstance(first, str) and isinstance(second, str)):
                return DIFFERS, f"only one of both runs: {first if isinstance(first, str) else second}"
            reason = reason or str(first)
            continue
        return (EQUAL, "") if _same(first, second) else (DIFFERS, "other numbers")
    return NOT_RUN, reason


def _run(session: ort.InferenceSession, feeds: dict[str, Any]) -> list[Any] | str:
    options = ort.RunOptions()
    options.log_severity_level = 4
    try:
        return session.run(None, feeds, options)
    except Exception as e:  # noqa: BLE001 - as in _open
        return _reason(e)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return a.tolist() == b.tolist() if a.dtype == object else a.tobytes() == b.tobytes()
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def files(zoo: Path) -> list[Path]:
    """Every model file of the zoo."""
    return sorted(zoo.rglob("*.onnx"))


def table(results: Iterable[RoundTrip]) -> str:
    """The results as markdown: the count of each status, then every file that is not simply equal, then the others."""
    results = sorted(results, key=lambda r: (list(MEANING).index(r.status), r.file))
    count = collections.Counter(r.status for r in results)
    lines = [
        "# Load and save, on every model at hand", "",
        f"{len(results)} files, ONNX Runtime {ort.__version__}. Made by",
        "`python -m graphpress.tools.bench.roundtrip --zoo DIR --out docs/figures/roundtrip.md`.",
        "", "| status | files | meaning |", "|---|---|---|",
        *(f"| {status} | {count[status]} | a file that {meaning} |" for status, meaning in MEANING.items()),
    ]  # fmt: skip
    for status in MEANING:
        group = [r for r in results if r.status == status]
        if group:
            head = ["| file |", "|---|"] if status == EQUAL else ["| file | why |", "|---|---|"]
            lines += ["", f"## {status}", "", *head]
            lines += [f"| {r.file} |" + (f" {_cell(r.reason)} |" if r.reason else "") for r in group]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table; exit code 1 where a file differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--zoo", type=Path, default=os.environ.get("GRAPHPRESS_ZOO"), help="folder of models")
    parser.add_argument("--out", type=Path, help="where the table goes; printed when absent")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args(argv)
    if args.zoo is None:
        parser.error("give --zoo or set GRAPHPRESS_ZOO")
    paths = files(args.zoo)
    with concurrent.futures.ProcessPoolExecutor(args.jobs) as pool:
        names = [str(p.relative_to(args.zoo)) for p in paths]
        results = list(pool.map(round_trip, paths, names, chunksize=16))
    text = table(results)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return int(any(r.status == DIFFERS for r in results))


if __name__ == "__main__":
    sys.exit(main())
