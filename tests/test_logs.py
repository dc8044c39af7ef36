"""Logs: one event a line, and no patient above DEBUG."""

from __future__ import annotations

import io
import json
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filing_world import a_world, changed, other_pixels, small_instances

from config.logs import configure_logging, get_logger, short
from config.tables.telling import LoggingSettings
from daemon.processes import log_failing_threads
from workers.filing import taking
from workers.jobs import configure, file_now

SECRETS = ("Geheimnis", "SECRETID", "SECRETACC", "SecretFolder", "SecretDescription")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("config", "workers", "daemon")}
    levels |= {name: logging.getLogger(name).level for name in ("pydicom", "pynetdicom", "rq")}
    yield io.StringIO()
    root.handlers[:], root.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_thread_that_fails_is_a_line_without_a_patient(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ValueError("Geheimnis^Anna")

    configure_logging(LoggingSettings(level="INFO", format="json"), stream)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    log_failing_threads()
    thread = threading.Thread(target=fail, name="looker")
    thread.start()
    thread.join()
    (line,) = lines(stream)
    assert (line["event"], line["thread"]) == ("thread-failed", "looker")
    assert "ValueError" in stream.getvalue()
    assert "Geheimnis" not in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_patient_is_named_while_a_batch_is_filed(
    tmp_path: Path, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    configure_logging(LoggingSettings(level="INFO", format=form), stream)  # type: ignore[arg-type]
    first, second = (
        changed(
            content,
            PatientName="Geheimnis^Anna",
            PatientID="SECRETID",
            AccessionNumber="SECRETACC",
            StudyDescription="SecretDescription",
            SeriesDescription="SecretDescription",
        )
        for content in small_instances(tmp_path / "made", 2)
    )
    files = {
        "SecretFolder/1": first,
        "SecretFolder/2": second,
        "SecretFolder/conflict": other_pixels(first),
        "SecretFolder/variant": changed(second, PatientID="SECRETID2"),
        "SecretFolder/Geheimnis.txt": b"Geheimnis SECRETID",
        "SecretFolder/cut": first[:900],
        "SecretFolder/odd": changed(first, SOPInstanceUID="2.25.1")
        .replace(b"ISO_IR 100", b"ISO_IR 999")
        .replace(b"SECRETACC", b"SECRETACC"),
    }
    with a_world(tmp_path / "SecretFolder") as world:
        world.put(files)
        original = taking.known_arrivals
        calls = []

        def failing(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 1:
                raise OSError(5, "I/O error", "SecretFolder/1")
            return original(*arguments)

        monkeypatch.setattr(taking, "known_arrivals", failing)
        place = configure(world.settings)
        file_now(place, world.waiting())
        place.close()
        try:
            raise ValueError("Geheimnis^Anna")
        except ValueError:
            get_logger("workers.test").exception("job-failed", study=short("1.2.3"))
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("Geheimnis", stacklevel=1)
        logging.getLogger("pydicom").error("Geheimnis")
        logging.getLogger("rq.worker").error("SECRETID")
    text = stream.getvalue()
    assert "batch-failed" in text
    assert "quarantined" in text
    assert "filed" in text
    assert "job-failed" in text
    for secret in SECRETS:
        assert secret not in text, f"{secret} stands in the logs"


def test_an_exception_is_named_by_type_and_place_only(stream: io.StringIO) -> None:
    configure_logging(LoggingSettings(format="json"), stream)
    try:
        open("/nonexistent/Geheimnis")  # noqa: SIM115
    except OSError:
        get_logger("workers.test").exception("failed")
    (line,) = lines(stream)
    assert line["error"].startswith("FileNotFoundError errno 2 at test_logs.py:")
    assert line["level"] == "error"


def test_debug_shows_the_whole_exception(stream: io.StringIO) -> None:
    configure_logging(LoggingSettings(level="DEBUG"), stream)
    try:
        raise ValueError("Geheimnis")
    except ValueError:
        get_logger("workers.test").exception("failed")
    assert "ValueError: Geheimnis" in stream.getvalue().replace("\\n", "\n")


def test_a_line_of_text_is_one_line_whatever_the_values_are(stream: io.StringIO) -> None:
    configure_logging(LoggingSettings(format="text"), stream)
    get_logger("workers.test").info("event", a="b c", d='e"f', g="h\ni", j=None, k="", l="m\r\x1bn")
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.isascii()
    assert all(character.isprintable() for character in text.rstrip("\n"))
    assert 'a="b c"' in text


def test_a_line_of_json_commands_no_terminal(stream: io.StringIO) -> None:
    configure_logging(LoggingSettings(format="json"), stream)
    hostile = "A\x1b[2J\x9b2J\u202e"
    get_logger("workers.test").info("event", a=hostile)
    get_logger("workers.test").info("event", a="Müller")
    first, second = stream.getvalue().splitlines()
    assert first.isprintable()
    assert json.loads(first)["a"] == hostile
    assert '"Müller"' in second


def test_debug_is_not_computed_above_debug(stream: io.StringIO) -> None:
    configure_logging(LoggingSettings(level="WARNING"), stream)
    get_logger("workers.test").info("event")
    get_logger("workers.test").warning("seen")
    assert "event" not in stream.getvalue()
    assert "seen" in stream.getvalue()


def test_short_is_stable_and_says_nothing() -> None:
    assert short("1.2.3") == short("1.2.3")
    assert len(short("SECRETID")) == 8
    assert short("a\udcff")


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_line_for_the_journal_carries_its_priority_and_one_for_a_file_does_not(
    stream: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    with (tmp_path / "journal").open("w+") as journal, (tmp_path / "file").open("w+") as file:
        facts = (tmp_path / "journal").stat()
        monkeypatch.setenv("JOURNAL_STREAM", f"{facts.st_dev}:{facts.st_ino}")
        for target in (journal, file):
            configure_logging(LoggingSettings(level="DEBUG", format=form), target)
            log = get_logger("daemon.somewhere")
            log.debug("looked")
            log.info("filed", count=2)
            log.warning("slow")
            log.error("lost")
            target.seek(0)
        assert [line[:3] for line in journal] == ["<7>", "<6>", "<4>", "<3>"]
        assert not any(line.startswith("<") for line in file)
