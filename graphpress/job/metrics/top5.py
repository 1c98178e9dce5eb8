"""Top-5 accuracy in percent."""

from __future__ import annotations

from typing import ClassVar

from graphpress.job.metric import Top1


class Top5(Top1):
    """As ``Top1``, right where the label is among the five largest scores."""

    name: ClassVar[str] = "top-5"
    title: ClassVar[str] = "top-5 %"
    best: ClassVar[int] = 5


METRIC = Top5
