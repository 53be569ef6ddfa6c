"""Ranks that fail together: what one of them cannot do ends the run on all of them, and one of them says why.

A rank that simply raised would leave the others waiting in their next sum. So everything that can fail on one rank only
(files, mostly) stands in a `together` block, at whose end all ranks ask each other whether it went well. In a group of
one the block is nothing. A rank that is killed breaks the ring, which the others' next sum reports.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from utils.errors import UserError


@contextlib.contextmanager
def together(group: Any) -> Iterator[None]:
    """Leave the block on every rank, or raise on every rank. No collective call may stand inside.

    A failing rank raises its own error, the others an empty `UserError` (exit code 2, no line); when the main rank
    failed, a person's mistake is told by the main rank alone.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    main_failed = group.any(group.is_main and failure is not None)
    if not (main_failed or group.any(failure is not None)):
        return
    told_by_main = main_failed and not group.is_main and isinstance(failure, UserError)
    if failure is None or told_by_main:
        raise UserError()
    raise failure
