"""Quantizers by what schemes say of them: a name, and options behind a colon."""

from __future__ import annotations

import functools

import yaml

from graphpress import catalog
from graphpress.errors import BadRequest, nearest
from graphpress.passes.quantizers.quantizer import Quantizer
from graphpress.typed import typed


@functools.cache
def named(text: str) -> Quantizer:
    """The quantizer of a text such as ``affine`` or ``power:exponent=0.5``.

    Raises:
        BadRequest: There is no such quantizer or option (the nearest is given), or a value of the wrong type.
    """
    name, _, rest = text.partition(":")
    found, where = catalog.quantizer_named(name), f"quantizer {text!r}"
    if found is None:
        behind = "Options stand behind a colon: power:exponent=0.5."
        fix = nearest(name, catalog.quantizers()) if name.isalnum() else behind
        raise BadRequest(f"there is no quantizer {name!r}", where=where, fix=fix)
    options = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise BadRequest(f"{pair!r} is no OPTION=VALUE", where=where)
        options[key] = yaml.safe_load(value)
    made: Quantizer = typed(found, options, where, BadRequest)
    return made
