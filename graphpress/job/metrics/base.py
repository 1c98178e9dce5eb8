"""What a metric by name is."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from graphpress.errors import BadRequest, CalibrationError
from graphpress.observe.binding import LABELS
from graphpress.observe.data import CalibrationData
from graphpress.runner import Runner
from graphpress.typed import typed


@dataclass
class NamedMetric(abc.ABC):
    """A figure of a runner on held-out samples, higher is better. Its fields are its options, but for the data.

    Attributes:
        data: Of ``on``.
    """

    data: CalibrationData = field(init=False, repr=False)

    name: ClassVar[str]
    title: ClassVar[str]  # in the report
    reads: ClassVar[tuple[str, ...]] = ()  # arrays of the data that are no inputs, beside labels

    @classmethod
    def on(cls, data: CalibrationData, options: Mapping[str, Any]) -> NamedMetric:
        """One for these samples.

        Raises:
            BadRequest: It has no such option, or a value is of the wrong type.
        """
        made: NamedMetric = typed(cls, options, f"metric {cls.name!r}", BadRequest)
        made.data = data
        return made

    @abc.abstractmethod
    def __call__(self, runner: Runner) -> float:
        """The figure.

        Raises:
            CalibrationError: The data lack something, or labels do not fit the outputs.
        """

    def labels(self, what: str) -> np.ndarray:
        """The labels of the data.

        Args:
            what: They are to be, in a message.

        Raises:
            CalibrationError: There are none.
        """
        found = self.data.labels
        if found is None:
            raise CalibrationError(
                f"metric {self.name!r} needs labels", where="data", fix=f"Add an array {LABELS!r}: {what}."
            )
        return found
