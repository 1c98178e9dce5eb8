"""What methods and losses need beyond the outputs and inputs of a model."""

from __future__ import annotations


class Needs:
    """By default nothing."""

    @property
    def features(self) -> tuple[str, ...]:
        """Values of the main graph beside the outputs that the student and the teacher have to give."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Arrays of the data beside the model's inputs that are looked up. ``labels`` are there anyway."""
        return ()
