"""Objects from options as recipes write them: a dataclass and a mapping, every value checked against its type."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic

from graphpress.errors import GraphpressError, nearest


@dataclass(frozen=True)
class Known:
    """Annotates an option that takes a name of something that is found by being there: the schema says which there are.

    They are examples, not choices: options or an argument may stand behind a name.
    """

    names: Callable[[], Iterable[str]]

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """What pydantic asks of an annotation."""
        return {**handler(core), "examples": list(self.names())}


def typed(
    cls: Any, options: Mapping[str, Any], where: str, error: type[GraphpressError], beside: Sequence[str] = ()
) -> Any:
    """An instance of a dataclass with these options.

    Args:
        cls: Its ``init`` fields are the options that there are.
        options: JSON values by name.
        where: Comes first in a message.
        error: What is raised.
        beside: Options that are dealt with elsewhere, for the nearest name.

    Raises:
        GraphpressError: No such option (the nearest is given), or a value of the wrong type; or as the class says.
    """
    fields = [f.name for f in dataclasses.fields(cls) if f.init]
    for option in options:
        if option not in fields:
            raise error(f"it has no option {option!r}", where=where, fix=nearest(option, [*fields, *beside]))
    try:
        return _adapter(cls).validate_python(dict(options))
    except pydantic.ValidationError as e:
        first = e.errors()[0]
        option = ".".join(str(p) for p in first["loc"])
        raise error(f"option {option!r}: {first['msg']}, got {first['input']!r}", where=where) from e
    except pydantic.PydanticUserError as e:
        said = str(e).splitlines()[0]
        raise error(f"its options have types that no text can give: {said}", where=where) from e


def schema(cls: Any) -> dict[str, Any]:
    """The JSON schema of a dataclass's options."""
    return _adapter(cls).json_schema()


@functools.lru_cache(512)
def _adapter(cls: Any) -> pydantic.TypeAdapter[Any]:
    """Made once a class: it takes longer than a hundred checks."""
    return pydantic.TypeAdapter(cls)
