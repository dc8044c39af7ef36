"""Structured logs: one event name and its facts a line, on stderr.

PatientIDs, names, accession numbers and source paths belong to DEBUG. Above it an object is named
by `short`, a hash that links lines of one object without saying which patient it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from types import TracebackType
from typing import Any, TextIO

from config.tables.telling import LoggingSettings

_Failure = tuple[type[BaseException], BaseException, TracebackType | None]

_QUOTING = ("pydicom", "pynetdicom", "rq", "watchdog")
"""Libraries whose texts quote header values, peers and paths at every level."""


def short(uid: str) -> str:
    """Return eight hex digits that stand for a UID or name in logs."""
    return hashlib.blake2b(uid.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()


class Log:
    """A logger whose messages are event names and whose facts are keyword arguments."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    @property
    def says_debug(self) -> bool:
        """Whether DEBUG is said at all: for facts that cost time to make."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, event: str, **facts: Any) -> None:
        self._log(logging.DEBUG, event, facts)

    def info(self, event: str, **facts: Any) -> None:
        self._log(logging.INFO, event, facts)

    def warning(self, event: str, **facts: Any) -> None:
        self._log(logging.WARNING, event, facts)

    def error(self, event: str, **facts: Any) -> None:
        self._log(logging.ERROR, event, facts)

    def exception(self, event: str, of: _Failure | None = None, **facts: Any) -> None:
        """Log at ERROR with type and place of the exception in hand, or of another.

        Its text is told only at DEBUG.
        """
        self._log(logging.ERROR, event, facts, exc_info=of or True)

    def _log(
        self, level: int, event: str, facts: dict[str, Any], exc_info: bool | _Failure = False
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, exc_info=exc_info, extra={"facts": facts})


def get_logger(name: str) -> Log:
    """Return the structured logger of a module."""
    return Log(name)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            "pid": record.process,
        }
        line.update(getattr(record, "facts", {}))
        if record.exc_info and record.exc_info[0]:
            line["error"] = _error_words(record)
        text = json.dumps(line, default=str, ensure_ascii=False)
        return text if text.isprintable() else json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One readable line: time, level, event, key=value."""

    def format(self, record: logging.LogRecord) -> str:
        facts = dict(getattr(record, "facts", {}))
        if record.exc_info and record.exc_info[0]:
            facts["error"] = _error_words(record)
        words = " ".join(f"{key}={_plain(value)}" for key, value in facts.items())
        head = f"{_utc(record.created)} {record.levelname:<7} {record.name}"
        return f"{head} {record.getMessage()} {words}".rstrip()


class JournalFormatter(logging.Formatter):
    """A line of another form behind its priority, as the journal reads it (sd-daemon(3))."""

    _PRIORITIES = (
        (logging.CRITICAL, 2),
        (logging.ERROR, 3),
        (logging.WARNING, 4),
        (logging.INFO, 6),
    )

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        levels = (number for level, number in self._PRIORITIES if record.levelno >= level)
        prefix = f"<{next(levels, 7)}>"
        return "\n".join(prefix + line for line in self._inner.format(record).split("\n"))


def _is_journal(stream: TextIO) -> bool:
    """Tell whether a stream leads to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    given = os.environ.get("JOURNAL_STREAM")
    if not given:
        return False
    try:
        facts = os.fstat(stream.fileno())
    except (OSError, ValueError):  # no file behind it
        return False
    return given == f"{facts.st_dev}:{facts.st_ino}"


def configure_logging(settings: LoggingSettings, stream: TextIO | None = None) -> None:
    """Send all logs to stderr in the form that the settings ask for; call once a process.

    Where stderr is the journal, each line carries its priority: `journalctl -p warning` finds it.
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    formatter = JsonFormatter() if settings.format == "json" else TextFormatter()
    handler.setFormatter(JournalFormatter(formatter) if _is_journal(stream) else formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries speak up only when something is wrong
    for package in ("config", "workers", "daemon"):
        logging.getLogger(package).setLevel(settings.level)
    for quoting in _QUOTING:
        logging.getLogger(quoting).setLevel(
            logging.DEBUG if settings.level == "DEBUG" else logging.CRITICAL
        )
    if settings.level != "DEBUG":
        handler.addFilter(_quotes_nobody)  # rq.worker has a level of its own
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)


def _utc(seconds: float) -> str:
    return (
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        + f".{int(seconds % 1 * 1000):03d}Z"
    )


def _error_words(record: logging.LogRecord) -> str:
    """Type and place of an exception; its text may quote a patient, so only at DEBUG."""
    kind, error, trace = record.exc_info or (None, None, None)
    if kind is None or error is None:
        return "no exception"
    if logging.getLogger(record.name).isEnabledFor(logging.DEBUG):
        return logging.Formatter().formatException((kind, error, trace))
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = (
        f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else "?"
    )
    number = f" errno {error.errno}" if isinstance(error, OSError) else ""
    return f"{kind.__name__}{number} at {place}"


def _quotes_nobody(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.CRITICAL or record.name.partition(".")[0] not in _QUOTING


def _plain(value: Any) -> str:
    text = str(value)
    if text and text.isprintable() and not any(c in text for c in ' "='):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
