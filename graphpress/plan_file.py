"""Plans as people edit them: what is wrong in one is said by site and field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphpress.errors import BadRequest
from graphpress.typed import typed
from graphpress.types import Granularity, Plan, Scheme, Site

_FIX = "Write one with `graphpress plan show MODEL --json`."


def read(data: Any, where: str) -> Plan:
    """The inverse of ``Plan.to_json``, of data that anybody may have written.

    Args:
        data: ``sites``, a scheme each, and ``ties``, lists of sites.
        where: Comes first in a message.

    Raises:
        BadRequest: It is none; names the site and the field.
    """
    sites = data.get("sites") if isinstance(data, Mapping) else None
    if not isinstance(sites, Mapping):
        raise BadRequest("has no mapping 'sites'", where=where, fix=_FIX)
    ties = data.get("ties", ())
    if not isinstance(ties, list | tuple) or not all(isinstance(tie, list | tuple) for tie in ties):
        raise BadRequest("its 'ties' are no list of lists of sites", where=where, fix=_FIX)
    schemes = {_site(s, where): scheme(v, f"{where}: site {str(s)!r}") for s, v in sites.items()}
    found = tuple(frozenset(_site(s, f"{where}: ties") for s in tie) for tie in ties)
    for tie in found:
        if lost := sorted(tie - schemes.keys()):
            fix = "Give it one, or untie it."
            raise BadRequest(f"{str(lost[0])!r} has no scheme", where=f"{where}: ties", fix=fix)
    return Plan(schemes, found)


def scheme(data: Any, where: str) -> Scheme:
    """The inverse of ``Scheme.to_json``; what is left out is as in ``Scheme()``.

    Raises:
        BadRequest: It is none; names the field.
    """
    if not isinstance(data, Mapping):
        raise BadRequest(f"{data!r} is no scheme", where=where, fix="Write {dtype: int8, granularity: per_channel:0}.")
    told = dict(data)
    try:
        if "granularity" in told:
            told["granularity"] = _granularity(told["granularity"])
        made: Scheme = typed(Scheme, told, where, BadRequest)
    except BadRequest as e:
        if e.where == where:
            raise
        place = f"{where}, field {e.where!r}" if e.where in Scheme.__dataclass_fields__ else where
        raise BadRequest(e.what, where=place, fix=e.fix) from e
    return made


def _granularity(text: Any) -> Granularity:
    if not isinstance(text, str):
        raise BadRequest(f"{text!r} is none", where="granularity", fix="Write per_tensor, per_channel:0 or the like.")
    try:
        return Granularity.parse(text)
    except BadRequest as e:
        raise BadRequest(e.what, where="granularity", fix=e.fix) from e


def _site(text: Any, where: str) -> Site:
    try:
        return Site.parse(str(text))
    except BadRequest as e:
        raise BadRequest(e.what, where=where, fix=e.fix) from e
