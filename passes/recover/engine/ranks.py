"""The processes that train together, one a device, as ``torchrun`` starts them: each takes its share of every batch.

Plain data parallelism: all hold the same parameters, gradients are added up over them before each update. (Parameters
that are spread over devices, FSDP2, are not offered.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are.

    Attributes:
        rank: From 0; the first one writes files.
        count: Of all.
        device: Where it talks to the others.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @classmethod
    def here(cls, device: str) -> Ranks:
        """By the environment that ``torchrun`` sets; joins its group if nobody has."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        import torch.distributed as group

        if not group.is_initialized():
            group.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        return cls(group.get_rank(), group.get_world_size(), device)

    def mine(self, index: int) -> bool:
        """Whether the piece of a batch with this index is this process's."""
        return index % self.count == self.rank

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Let each of these be its sum over all processes."""
        if self.count > 1:
            import torch.distributed as group

            for tensor in tensors:
                group.all_reduce(tensor)

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sums of some numbers over all processes; all of them name the same ones."""
        if self.count == 1:
            return dict(values)
        import torch

        sums = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        self.add([sums])
        return dict(zip(values, sums.tolist(), strict=True))

    def first(self, value: float) -> float:
        """What the first process has there."""
        return self.total({"": value if self.rank == 0 else 0.0})[""]
