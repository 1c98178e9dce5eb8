"""The exporter's knowledge of its operators is read once, and what is traced is the same."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry as Registry

import graphpress as gp
from graphpress.errors import Unsupported
from graphpress.frontends import torch_registry


def saved(folder: Path, name: str) -> bytes:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    gp.save(gp.trace(module, torch.zeros(1, 2, 4, 4)), folder / name)
    return (folder / name).read_bytes()


def test_read_once_and_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [saved(tmp_path, "first"), saved(tmp_path, "second")]
    with monkeypatch.context() as m:
        put_in: list[tuple] = []
        register = Registry._register
        m.setattr(Registry, "_register", lambda self, *given: (put_in.append(given), register(self, *given)))
        kept.append(saved(tmp_path, "third"))
    assert all(meta.is_custom for _, meta in put_in)  # ours: none of torch's some five hundred
    with monkeypatch.context() as m:
        m.setattr(torch_registry, "kept", contextlib.nullcontext)
        plain = saved(tmp_path, "plain")
    assert set(kept) == {plain}


def test_torchs_own_is_back_afterwards() -> None:
    own = vars(Registry)["from_torchlib"]
    gp.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    assert vars(Registry)["from_torchlib"] is own
    with pytest.raises(Unsupported):
        gp.trace(torch.nn.Linear(2, 2), torch.zeros(1, 3))
    assert vars(Registry)["from_torchlib"] is own


def test_what_one_export_registers_no_other_sees() -> None:
    def double(x: object) -> object:
        return x

    target = torch.ops.aten.neg.default
    with torch_registry.kept():
        first, second = Registry.from_torchlib(), Registry.from_torchlib()
    before = len(second.get_decomps(target))
    first.register_op(target, double)
    assert len(first.get_decomps(target)) == before + 1
    assert len(second.get_decomps(target)) == before


def test_what_torch_learns_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's operators are there once it is imported."""
    read = []
    monkeypatch.setattr(torch_registry, "_READ", {})
    monkeypatch.setattr(Registry, "from_torchlib", classmethod(lambda cls: read.append(cls) or cls()))
    monkeypatch.delitem(torch_registry.sys.modules, "torchvision", raising=False)
    with torch_registry.kept():
        Registry.from_torchlib(), Registry.from_torchlib()
        monkeypatch.setitem(torch_registry.sys.modules, "torchvision", torch)
        Registry.from_torchlib()
    assert len(read) == 2


def test_threads_that_overlap_leave_torchs_own_behind() -> None:
    """The second begins before the first ends, and ends after it."""
    own, inside, leave, last = vars(Registry)["from_torchlib"], threading.Event(), threading.Event(), threading.Event()

    def export(entered: threading.Event, until: threading.Event) -> None:
        with torch_registry.kept():
            entered.set()
            until.wait(10)

    first = threading.Thread(target=export, args=(inside, leave))
    first.start()
    inside.wait(10)
    begun = threading.Event()
    second = threading.Thread(target=export, args=(begun, last))
    second.start()
    begun.wait(0.1)  # without a lock it is inside by now
    leave.set()
    first.join()
    last.set()
    second.join()
    assert vars(Registry)["from_torchlib"] is own
