"""Quantizers by what schemes say of them: a name, and options behind a colon."""

from __future__ import annotations

import dataclasses
import functools

import pydantic
import yaml

from graphpress import catalog
from graphpress.errors import BadRequest, nearest
from graphpress.passes.quantizers.quantizer import Quantizer


@functools.cache
def named(text: str) -> Quantizer:
    """The quantizer of a text such as ``affine`` or ``power:exponent=0.5``.

    Raises:
        BadRequest: There is no such quantizer or option (the nearest is given), or a value of the wrong type.
    """
    name, _, rest = text.partition(":")
    known, where = catalog.quantizers(), f"quantizer {text!r}"
    if name not in known:
        fix = nearest(name, known) if name.isalnum() else "Options stand behind a colon: power:exponent=0.5."
        raise BadRequest(f"there is no quantizer {name!r}", where=where, fix=fix)
    cls = known[name]
    fields = [f.name for f in dataclasses.fields(cls)]
    options = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if key not in fields or not equals:
            raise BadRequest(f"{name} has no option {key!r}", where=where, fix=nearest(key, fields))
        options[key] = yaml.safe_load(value)
    try:
        made: Quantizer = pydantic.TypeAdapter(cls).validate_python(options)
    except pydantic.ValidationError as e:
        first = e.errors()[0]
        raise BadRequest(f"option {first['loc'][0] if first['loc'] else ''!r}: {first['msg']}", where=where) from e
    return made
