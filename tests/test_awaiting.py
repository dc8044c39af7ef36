"""What a role says while it waits for the index's server."""

import threading
from collections.abc import Iterator

import pytest

from daemon import awaiting
from daemon.hearing import listening, messages
from workers.errors import IndexUnreached


def test_the_reason_is_told_in_one_line_and_taken_back_when_the_server_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(awaiting, "_AGAIN_SECONDS", 0.0)
    away = OSError("refused\n\tIs it there?\nREADY=1\x1b[2J")
    tries: Iterator[int] = iter(range(3))

    def attempt() -> str:
        if next(tries) < 2:
            raise IndexUnreached(away)
        return "open"

    with listening() as (ears, address):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert awaiting.awaited(attempt, threading.Event()) == "open"
        reason, taken_back = (text for _, text in messages(ears))
    assert reason.startswith("STATUS=waits: the index cannot be opened: refused Is it there? READY")
    assert len(reason.splitlines()) == 1
    assert reason.isprintable()
    assert taken_back == "STATUS="
