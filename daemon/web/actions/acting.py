"""What every action of the page has in common: a page that asks, a form that does it, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio
import sqlalchemy as sa
from starlette.exceptions import HTTPException
from starlette.requests import Request

from config.logs import get_logger
from daemon.web.telling import tell
from workers.errors import WorkersError

_T = TypeVar("_T")

log = get_logger(__name__)


class Undone(Exception):
    """An action that was not done, with the reason in words for whoever asked for it."""


@dataclass(frozen=True, slots=True)
class Action:
    """What an action is called on its page."""

    title: str
    words: str
    button: str
    asks: bool = False
    """Whether PET, CT, weight and dose may be given."""
    harms: bool = False


def action_of(known: dict[str, Action], request: Request) -> Action:
    found = known.get(request.path_params["action"])
    if found is None:
        raise HTTPException(404, "There is no such action.")
    return found


async def try_it(request: Request, do: Callable[[], str]) -> None:
    """Do something in a thread, and tell on the next page what it did, or why not."""
    try:
        words = await in_thread(do)
    except Undone as error:
        words = str(error)
    except WorkersError as error:
        words = f"Nothing was done: {error}"
    except (OSError, sa.exc.DBAPIError) as error:
        log.warning("web-action-failed", path=request.url.path, error=type(error).__name__)
        reason = error.strerror if isinstance(error, OSError) else "the index cannot be written"
        words = f"It failed: {reason}. Look whether it was done before you try again."
    tell(request, words)


async def in_thread(do: Callable[..., _T], *given: object) -> _T:
    return await anyio.to_thread.run_sync(do, *given)
