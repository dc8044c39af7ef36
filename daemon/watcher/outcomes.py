"""What became of a settled file that was to be taken."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from daemon.watcher.scanning import Found

SPOOL_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT))
"""Errors that every other file would meet too: the round ends, the files stay."""


class Outcome(StrEnum):
    """What became of one file."""

    TAKEN = "taken"
    BUSY = "busy"  # somebody writes
    CHANGED = "changed"  # no longer what had settled
    GONE = "gone"
    TROUBLE = "trouble"  # an error of the operating system; it is tried again


@dataclass(frozen=True, slots=True)
class Result:
    found: Found
    outcome: Outcome
    error: OSError | None = None


class NotNow(Exception):
    """A file is not to be taken in this round."""

    def __init__(self, outcome: Outcome, error: OSError | None = None) -> None:
        self.outcome = outcome
        self.error = error


def result_of(found: Found, action: Callable[[Found], Outcome]) -> Result:
    """Do one file; its own errors become a result, the spool's end the round."""
    try:
        return Result(found, action(found))
    except NotNow as reason:
        return Result(found, reason.outcome, reason.error)
    except FileNotFoundError as error:
        return Result(found, Outcome.GONE, error)
    except OSError as error:
        if error.errno in SPOOL_ERRORS:
            raise
        if error.errno == errno.ELOOP:  # a link took its place
            return Result(found, Outcome.GONE, error)
        return Result(found, Outcome.TROUBLE, error)
