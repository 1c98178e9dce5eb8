"""The n:m patterns that can be asked for."""

from __future__ import annotations

from graphpress.errors import BadRequest


def checked(n: int, m: int, where: str) -> str:
    """The pattern as text.

    Raises:
        BadRequest: It would keep nothing or everything, or is larger than masks are made for.
    """
    if not 1 <= n < m:
        raise BadRequest(
            f"{n}:{m} keeps {'nothing' if n < 1 else 'everything'}", where=f"{where}: options 'n' and 'm'",
            fix="Of each m neighbours n are kept, so choose 1 <= n < m, such as n: 2, m: 4.",
        )  # fmt: skip
    if m > 32:
        raise BadRequest(f"groups of {m} are too large", where=f"{where}: option 'm'", fix="Choose m up to 32.")
    return f"{n}:{m}"
