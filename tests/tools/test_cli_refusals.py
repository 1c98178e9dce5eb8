"""What cannot be done gets one line that names the place, the rule and the way out; exit code 2; nothing is written."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphpress.tools.cli.app import app, guarded
from tests import warm

RNG = np.random.default_rng(0)


def conv(external: str | None = None) -> onnx.ModelProto:
    """x[N, 3, 8, 8] -> Conv -> Relu -> y, weights in the file or in the external data of this location."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 8, 8] x) => (float[N, 8, 8, 8] y) { [conv] a = Conv(x, w) [relu] y = Relu(a) }""")
    tensor = numpy_helper.from_array(RNG.normal(size=(8, 3, 1, 1)).astype(np.float32), "w")
    if external is not None:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=external)
    model.graph.initializer.append(tensor)
    return model


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good model and good data, and the current one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    onnx.save(conv(), "m.onnx")
    np.savez("d.npz", x=RNG.normal(size=(16, 3, 8, 8)).astype(np.float32))
    return folder


def listing(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error of a command that ends with 2 and leaves the folder as it was."""
    before = listing(Path())
    capsys.readouterr()
    code = guarded(lambda: app(list(arguments), standalone_mode=False))
    out, err = capsys.readouterr()
    assert code == 2, (code, out, err)
    assert out == ""
    assert re.fullmatch(r"graphpress: [^\n]+\n", err), err
    assert "Traceback" not in err
    assert "internal error" not in err
    assert listing(Path()) == before
    return err


def compile_(capsys: pytest.CaptureFixture[str], *more: str, data: str | None = "d.npz", recipe: str = "w8a8") -> str:
    given = ["--data", data] if data else []
    return refused(capsys, "compile", "m.onnx", "--recipe", recipe, "--out", "out/here", *given, *more)


def save(proto: onnx.ModelProto) -> None:
    Path("m.onnx").write_bytes(proto.SerializeToString())


def change(edit: Callable[[onnx.ModelProto], object]) -> None:
    proto = conv()
    edit(proto)
    save(proto)


def raw(content: bytes) -> Callable[[], object]:
    return lambda: Path("m.onnx").write_bytes(content)


def cut() -> None:
    whole = Path("m.onnx").read_bytes()
    Path("m.onnx").write_bytes(whole[: len(whole) * 2 // 3])


def flipped() -> None:
    whole = bytearray(Path("m.onnx").read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 8] = bytes(b ^ 0xFF for b in whole[len(whole) // 2 : len(whole) // 2 + 8])
    whole[3] ^= 0x40
    Path("m.onnx").write_bytes(whole)


def linked() -> None:
    outside = Path("..") / "secret.bin"
    outside.write_bytes(bytes(96))
    Path("link.bin").symlink_to(outside)
    save(conv("link.bin"))


def short() -> None:
    Path("w.bin").write_bytes(bytes(95))
    save(conv("w.bin"))


def poisoned(proto: onnx.ModelProto) -> None:
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[2, 1] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))


MODELS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "no file": (lambda: Path("m.onnx").unlink(), ["no such file", "Give the path"]),
    "a folder": (lambda: (Path("m.onnx").unlink(), Path("m.onnx").mkdir()), ["is a folder"]),
    "empty": (raw(b""), ["empty"]),
    "text": (raw(b"not a model\n" * 20), ["text", "Give a whole binary .onnx file"]),
    "a zip": (raw(b"PK\x03\x04" + bytes(100)), ["zip", "never loaded"]),
    "truncated": (cut, ["damaged or cut short", "Give a whole"]),
    "bit-flipped": (flipped, []),
    "unknown domain": (lambda: change(lambda m: setattr(m.graph.node[1], "domain", "acme")), ["node 'relu'", "'acme'"]),
    "unknown operator": (lambda: change(lambda m: setattr(m.graph.node[1], "op_type", "Relo")), ["'Relo'", "'Relu'?"]),
    "missing external data": (lambda: save(conv("w.bin")), ["'w'", "'w.bin'", "no such file", "Put the data file"]),
    "short external data": (short, ["'w'", "'w.bin'", "95 bytes"]),
    "external data above": (lambda: save(conv("../secret.bin")), ["'w'", "leaves the folder"]),
    "absolute external data": (lambda: save(conv("/etc/hostname")), ["'w'", "leaves the folder"]),
    "linked external data": (linked, ["'w'", "leaves the folder"]),
    "a shape that lies": (lambda: change(lambda m: m.graph.initializer[0].dims.append(7)), ["'w'", "needs 672 bytes"]),
    "terabytes": (lambda: change(lambda m: m.graph.initializer[0].dims.append(1 << 40)), ["'w'", "needs"]),
    "NaN weights": (lambda: change(poisoned), ["'w'", "NaN"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_models(here: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    make, words = MODELS[case]
    make()
    said = compile_(capsys)
    assert "m.onnx" in said
    for word in words:
        assert word in said, said
    refused(capsys, "inspect", "m.onnx")
    refused(capsys, "opt", "m.onnx", "-p", "remove-identity", "--out", "n.onnx")


def x(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def nan_at_nine() -> np.ndarray:
    array = x(16, 3, 8, 8)
    array[9, 1] = np.nan
    return array


Y, LABELLED = np.arange(16) % 8, {"x": x(16, 3, 8, 8)}
DATA: dict[str, tuple[dict[str, np.ndarray], list[str]]] = {
    "wrong name": ({"image": x(16, 3, 8, 8)}, ["'image'", "no such input", "Call it 'x'"]),
    "one too many": ({"x": x(16, 3, 8, 8), "y": x(16, 3)}, ["'y'", "no such input"]),
    "missing": ({"labels": np.zeros(16, np.int64)}, ["'x'", "lacks"]),
    "wrong shape": ({"x": x(16, 4, 8, 8)}, ["'x'", "(16, 4, 8, 8)", "(?, 3, 8, 8)", "samples first"]),
    "wrong rank": ({"x": x(16, 3, 8)}, ["'x'", "(16, 3, 8)"]),
    "wrong type": ({"x": x(16, 3, 8, 8).astype(np.float64)}, ["'x'", "float64", "float32", "astype"]),
    "empty": ({"x": x(0, 3, 8, 8)}, ["no sample"]),
    "NaN": ({"x": nan_at_nine()}, ["'x'", "sample 9", "nan"]),
    "one-hot labels": (LABELLED | {"labels": np.eye(8)[Y]}, ["'labels'", "(16, 8)", "argmax"]),
    "labels of words": (LABELLED | {"labels": Y.astype(str)}, ["'labels'", "no class"]),
    "labels out of range": (LABELLED | {"labels": Y + 1000}, ["'labels'", "sample 0", "512 classes"]),
    "unequal": ({"x": x(16, 3, 8, 8), "labels": np.zeros(15, np.int64)}, ["disagree", "x 16", "labels 15"]),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
def test_calibration_data(here: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    arrays, words = DATA[case]
    np.savez("d.npz", **arrays)
    said = compile_(capsys)
    for word in ("d", *words):
        assert word in said, said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["none.npz"]),
        (b"", ["d.npz"]),
        (b"PK\x03\x04 no archive", ["d.npz"]),
        (b"x,y\n1,2\n", ["d.npz"]),
    ],
)
def test_files_that_are_no_data(
    here: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, words: list[str]
) -> None:
    if content is not None:
        Path("d.npz").write_bytes(content)
    said = compile_(capsys, data="d.npz" if content is not None else "none.npz")
    for word in words:
        assert word in said, said


def test_a_folder_without_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("samples").mkdir()
    assert "samples: the folder holds no .npz, .safetensors or .npy file" in compile_(capsys, data="samples")


RECIPES = {
    "unknown pass": ("passes: [quantise]", ["'quantise'", "'quantize'"]),
    "unknown option": ("passes: [{quantize: {obsrver: mse}}]", ["'quantize'", "'obsrver'", "'observer'"]),
    "wrong type": ("passes: [{quantize: {group_size: many}}]", ["'group_size'", "'many'"]),
    "unknown word": ("passes: [{quantize: {mode: statik}}]", ["'mode'", "'static'", "'statik'"]),
    "unknown key": ("passes: [quantize]\ngates: {}", ["'gates'", "'gate'"]),
    "unknown gate": ("passes: [quantize]\ngate: {min_snr: 3}", ["'min_snr'", "'min_sqnr'"]),
    "no passes": ("name: x", ["'passes'"]),
    "not YAML": ("passes: [quantize", ["not valid YAML"]),
    "a list": ("- quantize", ["mapping"]),
    "per_token is not static": (
        "passes: [{quantize: {mode: static, activation_granularity: per_token}}]", ["per_token", "dynamic"]),
    "weight only has no activations": ("passes: [{quantize: {mode: weight, activation: int8}}]", ["activation"]),
    "odd groups": ("passes: [{quantize: {group_size: 48}}]", ["48", "group_size"]),
    "a selector for nothing": ("passes: [{quantize: {ignore: [conw]}}]", ["'conw'", "'conv'"]),
    "an unknown observer": ("passes: [{quantize: {observer: mze}}]", ["'mze'", "'mse'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", RECIPES)
def test_recipes(here: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    text, words = RECIPES[case]
    Path("r.yaml").write_text(text)
    said = compile_(capsys, recipe="r.yaml")
    for word in words:
        assert word in said, said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--recipe", "w8a9"], ["'w8a9'", "'w8a8'"]),
        (["--target", "ort-cpv"], ["'ort-cpv'", "'ort-cpu'"]),
        (["--max-drop", "1"], ["max_drop", "labels"]),
        (["--max-drop", "-1"], ["max_drop", "from 0"]),
        (["--max-drop", "nan"], ["max_drop", "from 0"]),
        (["--max-drop", "little"], ["max-drop", "valid number"]),
        (["--set", "quantize.observer"], ["--set", "PASS.OPTION=VALUE"]),
        (["--set", "quantise.observer=mse"], ["'quantise'", "'quantize'"]),
        (["--set", "quantize.obsever=mse"], ["'obsever'", "'observer'"]),
        (["--set", "quantize.mode=[1, 2"], ["--set", "YAML"]),
        (["--set", "gate.samples=0"], ["samples"]),
        (["--sed", "1"], ["--sed"]),
        (["--seed", "one"], ["--seed", "valid integer"]),
        (["--state", "nowhere/state"], ["'nowhere/state'", "its folder does not exist", "name another file"]),
        (["--state", "."], ["calibration state"]),
        (["--state", "d.npz"], ["d.npz", "no calibration state"]),
        (["extra"], ["extra"]),
    ],
    ids=lambda v: " ".join(v) if v and v[0].startswith("--") else "",
)
def test_options(here: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: list[str]) -> None:
    said = compile_(capsys, *more)
    for word in words:
        assert word in said, said


def test_static_recipes_need_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text("passes: [{quantize: {mode: static}}]")
    assert "--data" in compile_(capsys, data=None, recipe="r.yaml")
    assert "--data" in compile_(capsys, data=None)


@pytest.mark.parametrize(
    ("passes", "words"),
    [
        ("remove-idnetity", ["'remove-idnetity'", "'remove-identity'"]),
        ("quantize{mode=weight", ["bracket"]),
        ("quantize{weight}", ["option=value"]),
        ("quantize{weight=int9}", ["'weight'", "'int9'"]),
        ("fold-weights}", ["bracket"]),
        ("quantize", ["--data"]),
        ("", ["names no pass", "graphpress passes"]),
        ("quantize{mode=weight,weight=int4,quantizer=powr}", ["'powr'", "'power'"]),
        ("quantize{mode=weight,weight=int4,quantizer='power{exponent=1}'}", ["power:exponent=0.5"]),
        ("quantize{mode=weight,weight=int4,quantizer='power:exponnt=1'}", ["'exponnt'", "'exponent'"]),
        ("recover{method=distil}", ["'method'", "'distil'", "'distill'"]),
        ("recover{method={qvgen: {rnk: 3}}}", ["'method'", "'qvgen'", "'rnk'", "'rank'"]),
        ("recover{losses={labels: {axs: 1}}}", ["'losses'", "'labels'", "'axs'", "'axis'"]),
        ("recover{steps=2}", ["recover", "needs calibration data", "--data"]),
    ],
)
def test_opt(here: Path, capsys: pytest.CaptureFixture[str], passes: str, words: list[str]) -> None:
    said = refused(capsys, "opt", "m.onnx", "-p", passes, "--out", "n.onnx")
    for word in words:
        assert word in said, said


def test_other_commands(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'w8a9'" in refused(capsys, "recipes", "w8a9")
    assert "'quantise'" in refused(capsys, "passes", "quantise")
    assert "'compil'" in refused(capsys, "compil", "m.onnx")
    assert "none.onnx" in refused(capsys, "diff", "m.onnx", "none.onnx")
    assert "none.npz" in refused(capsys, "audit", "m.onnx", "--data", "none.npz")
    assert "'model'" in refused(capsys, "inspect")
    assert "nowhere" in refused(capsys, "opt", "m.onnx", "-p", "remove-identity", "--out", "nowhere/n.onnx")


def test_what_is_read_is_not_written_over(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not by another name either: the samples and the model are what a user cannot make again."""
    Path("again.onnx").symlink_to("m.onnx")
    whole = Path("m.onnx").read_bytes()
    for out in ("m.onnx", "again.onnx", str(here / "m.onnx")):
        said = refused(capsys, "opt", "m.onnx", "-p", "remove-identity", "--out", out)
        assert f"--out {out}" in said and "m.onnx is read from there. Choose another --out." in said
    assert Path("m.onnx").read_bytes() == whole
    made = ["compile", "m.onnx", "--recipe", "clean", "--out", "out"]
    assert guarded(lambda: app(made, standalone_mode=False)) == 0
    said = refused(capsys, "compile", "out/model.onnx", "--recipe", "clean", "--out", "out")
    assert "out/model.onnx is read from there" in said
    Path("d.npz").rename("out/d.npz")
    assert "out/d.npz is read from there" in refused(
        capsys, "compile", "m.onnx", "--recipe", "w8a8", "--data", "out/d.npz", "--out", "out"
    )
    refused(capsys, "plan", "apply", "m.onnx", "out", "--out", "m.onnx")


def test_plans_that_are_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Give a plan" in refused(capsys, "plan", "show", "none.json")
    assert "Give a model that graphpress has quantized" in refused(capsys, "plan", "show", "m.onnx")


def test_output_folders(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/here").mkdir()
    Path("out/here/thesis.tex").touch()
    assert "did not write" in compile_(capsys)
    Path("out/here/thesis.tex").unlink()
    Path("out/.here.lock").write_text(str(os.getpid()))
    assert "another run" in compile_(capsys)
    Path("out/.here.lock").unlink()
    Path("out/here").rmdir()
    Path("out/here").touch()
    assert "not a folder" in compile_(capsys)
    Path("out/here").unlink()
    Path("out").rmdir()
    Path("out").touch()
    assert "out" in compile_(capsys)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("graphpress.job.bundle._dump", refuse)
    said = compile_(capsys, recipe="w8a16", data=None)
    assert "out/here" in said
    assert "--out" in said


def test_a_folder_that_may_not_be_written(here: Path) -> None:
    Path("locked").mkdir(mode=0o555)
    if os.access("locked", os.W_OK):
        Path("locked").rmdir()
        place = Path("/proc/graphpress")  # root may write anywhere else
    else:
        place = Path("locked/out")
    done = warm.graphpress("compile", "m.onnx", "--recipe", "w8a16", "--out", str(place), cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"graphpress: {place}: cannot be written[^\n]+Choose another --out\.\n", done.stderr), (
        done.stderr
    )


def test_a_file_size_limit_in_a_real_process(here: Path) -> None:
    """Writing past RLIMIT_FSIZE fails as a full disk does: in the middle of a file."""
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    limited = f"import resource, sys\nsys.dont_write_bytecode = True\n{limit}\n{warm.CLI}"
    before = listing(Path())
    done = warm.python(limited, "compile", "m.onnx", "--recipe", "w8a16", "--out", "out", cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"graphpress: [^\n]+\n", done.stderr), done.stderr
    assert listing(Path()) == before


def test_a_refusal_in_a_real_process(here: Path) -> None:
    Path("m.onnx").write_bytes(b"text")
    done = warm.graphpress("compile", "m.onnx", "--recipe", "w8a8", "--out", "out", cwd=here)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"graphpress: m\.onnx: [^\n]+\n", done.stderr), done.stderr
    assert not Path("out").exists()
