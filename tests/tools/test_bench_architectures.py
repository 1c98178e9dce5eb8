"""Architectures: what a stage makes of a module, the page of its entries, the list of models."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from graphpress.errors import BadRequest
from graphpress.tools.bench.architectures import __main__ as command
from graphpress.tools.bench.architectures.architecture import Architecture
from graphpress.tools.bench.architectures.listed import listed
from graphpress.tools.bench.architectures.page import misses, render
from graphpress.tools.bench.architectures.stages import STAGES, Entry, Subject, fill


def small(make: object = None, name: str = "small") -> Architecture:
    made = make or (lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)))
    return Architecture(name, "decoder", made, lambda draw: {"input": draw.floats(16)}, True, 1)  # type: ignore[arg-type]


def test_stages_of_a_small_network() -> None:
    subject = Subject(small())
    found = {stage: fill(subject, stage) for stage in ("trace", "parity", "ffn", "w8a8", "rot")}
    assert found["trace"].ok and found["trace"].counts == {"nodes": 3.0}
    assert found["parity"].ok and found["parity"].dB is not None and found["parity"].dB > 100
    assert found["ffn"].ok and found["ffn"].counts == {"blocks": 1, "of": 1}
    assert found["w8a8"].ok and found["w8a8"].dB is not None and 25 < found["w8a8"].dB < 70
    assert found["w8a8"].counts == {"sites": 2, "rewritten": 2, "samples": 16}
    assert not found["rot"].ok and found["rot"].counts["R1"] == found["rot"].counts["R1 of"] == 0


def test_gains_and_biases_are_drawn_and_blocks_that_are_missing_are_told() -> None:
    made = small(lambda: nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8)))
    norm = made.module()[0]
    assert norm.weight.std() > 0.05 and norm.bias.std() > 0.05
    assert (norm.weight - 1).abs().max() < 1 and torch.equal(norm.weight, made.module()[0].weight)
    found = fill(Subject(made), "ffn")
    assert not found.ok and found.counts == {"blocks": 0, "of": 1} and found.why


class Counting(nn.Module):
    """Gives something else at every call."""

    calls = 0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        Counting.calls += 1
        return input * Counting.calls


class Refused(nn.Module):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input if input.sum() > 0 else -input


class Torn(nn.Module):
    """A choice that only float64 can make: the sum vanishes beside what it is added to."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.where(input.sum(-1) * 1e-9 + 1 / 3 > 1 / 3, 1.0, -1.0)


def test_what_rounding_decides_is_no_fault_of_the_graph() -> None:
    def off(make: object) -> Entry:
        subject = Subject(small(make))
        subject.__dict__["wanted"] = [[-w for w in draw] for draw in subject.wanted]
        return fill(subject, "parity")

    torn, plain = off(Torn), off(None)
    assert torn.ok and torn.dB is not None and torn.dB < 0 and torn.counts["own"] < 3
    assert not plain.ok and plain.why == "worst of 1 outputs"


def test_outputs_that_differ_and_modules_that_cannot_be_traced() -> None:
    found = fill(Subject(small(Counting)), "parity")
    assert not found.ok and "two calls of the module" in found.why and not found.crash
    found = fill(Subject(small(Refused)), "trace")
    assert not found.ok and "depends on the values" in found.why and not found.crash


def entries() -> tuple[dict[tuple[str, str], Entry], list[Architecture]]:
    rows = [
        Entry("trace", "a", counts={"nodes": 7}), Entry("parity", "a", dB=120.0), Entry("w8a8", "a", dB=40.0),
        Entry("smooth", "a", dB=39.0), Entry("acm", "a", dB=30.0, counts={"blocks": 2}),
        Entry("rot", "a", dB=110.0, counts={"R1": 1, "R1 of": 1, "R2": 0, "R2 of": 2, "R4": 2, "R4 of": 2}),
        Entry("ffn", "a", ok=False, counts={"blocks": 1, "of": 2}, why="it forks"),
        Entry("trace", "b", ok=False, why="it | loops"), Entry("gptq", "a", ok=False, dB=math.inf, why="none"),
    ]  # fmt: skip
    return {(e.model, e.recipe): e for e in rows}, [small(name="a"), small(name="b")]


def test_page() -> None:
    found, wanted = entries()
    text = render(found, wanted)
    assert f"| | {' | '.join(STAGES)} |" in text
    assert "| a | 7 | yes | 1/2<sup>1</sup> | 40.0 |  | -<sup>2</sup> | R1 1/1, R2 0/2, R4 2/2 | 39.0 (-1.0) |" in text
    assert "39.0 (-1.0) |  | 2: 30.0 |  |" in text
    assert "| b | no<sup>3</sup> |" in text and text.endswith("1. it forks\n2. none\n3. it / loops\n")
    assert "| traced in the default configuration | 95% | 1 of 2 | 0 |" in text
    assert "| w8a8, of those traced | 100% | 1 of 1 | 0 |" in text and "| 100% | 0 of 0 | 1 |" not in text
    assert misses(found, wanted) == [
        "traced in the default configuration", "w4a16-gptq, of those traced", "SmoothQuant at most 0.3 dB below w8a8",
        "all feed-forward blocks found, where there are any",
    ]  # fmt: skip


def test_a_module_that_draws_random_numbers_is_compared_with_nothing() -> None:
    """Its cells are no failures, and its bars do not count it."""
    entry = fill(Subject(small(Counting)), "parity")
    found, wanted = entries()
    before = {line for line in render(found, wanted).splitlines() if line.endswith(" |") and "of those traced" in line}
    entry.model = "c"
    found |= {("c", "parity"): entry, ("c", "trace"): Entry("trace", "c", counts={"nodes": 3})}
    found["c", "w8a8"] = Entry("w8a8", "c", ok=False, dB=-math.inf, why="of another shape")
    text = render(found, [*wanted, small(name="c")])
    assert "| c | 3 | -<sup>" in text and "no two calls" not in text and "two calls of the module" in text
    assert before <= set(text.splitlines()) and "| 2 of 3 | 0 |" in text


def test_a_file_of_entries_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def lines(command: object, model: str, stages: list[str], limit: float) -> list[tuple[str, object]]:
        asked.append((model, stages))
        return [(s, {"recipe": s, "model": model} if s == "trace" else "killed") for s in stages]

    monkeypatch.setattr(command, "lines", lines)
    out = tmp_path / "rows.jsonl"
    args = argparse.Namespace(stages=["trace", "w8a8"], jobs=1, limit=1.0, out=out)
    out.write_text(json.dumps({"recipe": "trace", "model": "a"}) + "\n")
    known = command.load(out)
    assert command.main(["--only", "BertModel", "--out", str(out), "--known", "--page", str(tmp_path / "p")]) == 0
    assert asked == [] and "0 of 1 models" in (tmp_path / "p").read_text()
    command.fill(known, [small(name="a"), small(name="b")], args)
    assert asked == [("a", ["w8a8"]), ("b", ["trace", "w8a8"])]
    assert known["a", "w8a8"].crash and known["b", "trace"].ok
    assert command.load(out).keys() == known.keys() and len(out.read_text().splitlines()) == 4
    out.write_text("{}\n")
    with pytest.raises(BadRequest, match="not a file of entries"):
        command.load(out)


def test_listed_architectures() -> None:
    every = listed()
    assert len(every) == len({a.name for a in every}) >= 80
    families = {a.family for a in every}
    assert families >= {
        "encoder", "decoder", "encoder-decoder", "mixture of experts", "state space", "speech", "vision transformer",
        "convolutional", "detector", "diffusion U-Net", "diffusion transformer", "autoencoder", "codec",
    }  # fmt: skip
    assert listed("codec,BertModel")[0].name == "BertModel"
    with pytest.raises(BadRequest, match="BertModle"):
        listed("BertModle")
    assert command.main(["--stages", "tracing"]) == 2 and command.main(["--only", "nothing"]) == 2
