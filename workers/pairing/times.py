"""DICOM dates and times as moments of the scanner's wall clock.

A moment is an aware datetime whose UTC stands for *the scanner's local clock*: differences are all
that SUV needs, and naive datetimes would borrow the time zone of this machine. A moment without a
known date lies on `NO_DAY`; only its time of day means something.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

NO_DAY = date(2, 1, 1)
"""Stands for an unknown date; not in year 1, so that a day earlier can still be told."""
_YEARS = range(1000, 9999)
"""Dates beyond are none: a day before or after must exist."""

_DATE = re.compile(r"(\d{4})[.\-/]?(\d{2})[.\-/]?(\d{2})$")
_TIME = re.compile(r"(\d{2}):?(?:(\d{2}):?(?:(\d{2})(?:\.(\d+))?)?)?$")
_DATE_TIME = re.compile(r"(\d{8})(\d{2,6}(?:\.\d+)?)?([+-]\d{4})?$")
_OFFSET = re.compile(r"([+-])(\d{2})(\d{2})$")


@dataclass(frozen=True, slots=True)
class Stamp:
    """A DT value: a moment of some clock, and that clock's offset from UTC where it is given."""

    moment: datetime
    has_time: bool
    offset: timedelta | None


def parse_date(text: str | None) -> date | None:
    """Read a DA; None for what is no date (de-identified dates such as 00000000 exist)."""
    match = _DATE.match((text or "").strip())
    if match is None or int(match[1]) not in _YEARS:
        return None
    try:
        return date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        return None


def parse_time(text: str | None) -> timedelta | None:
    """Read a TM as the time since midnight; a leap second counts as the second before it."""
    match = _TIME.match((text or "").strip())
    if match is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.group(1, 2, 3))
    if hours > 23 or minutes > 59 or seconds > 60:
        return None
    fraction = float(f"0.{match[4]}") if match[4] else 0.0
    return timedelta(hours=hours, minutes=minutes, seconds=min(seconds, 59) + fraction)


def parse_offset(text: str | None) -> timedelta | None:
    """Read an offset from UTC such as +0100."""
    match = _OFFSET.match((text or "").strip())
    if match is None:
        return None
    size = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return -size if match[1] == "-" else size


def parse_date_time(text: str | None) -> Stamp | None:
    """Read a DT; a value without hours says so in `has_time`."""
    match = _DATE_TIME.match((text or "").strip())
    day = parse_date(match[1]) if match else None
    if match is None or day is None:
        return None
    clock = parse_time(match[2]) if match[2] else None
    if match[2] and clock is None:
        return None
    return Stamp(at(day, clock or timedelta()), clock is not None, parse_offset(match[3]))


def at(day: date | None, clock: timedelta) -> datetime:
    """Return the moment at a time of day, on `NO_DAY` when the date is unknown."""
    day = day or NO_DAY
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + clock


def moment_of(day: str | None, clock: str | None) -> datetime | None:
    """Return the moment of a DA and a TM; None without a time."""
    time_of_day = parse_time(clock)
    return None if time_of_day is None else at(parse_date(day), time_of_day)


def local_moment(stamp: Stamp | None, zone: timedelta | None) -> datetime | None:
    """Bring a DT onto the clock of `zone` (TimezoneOffsetFromUTC); None without a time of day.

    An offset is honoured where both are known. A scanner that gives no TimezoneOffsetFromUTC
    writes the offset of its own clock, so that the digits already are local.
    """
    if stamp is None or not stamp.has_time:
        return None
    if stamp.offset is None or zone is None:
        return stamp.moment
    return stamp.moment - stamp.offset + zone


def is_dated(moment: datetime) -> bool:
    """Tell whether the date of a moment is known."""
    return moment.year > NO_DAY.year


def time_of_day(moment: datetime) -> timedelta:
    """Return the time since midnight."""
    return moment - at(moment.date(), timedelta())


def on_nearest_day(clock: timedelta, anchor: datetime) -> datetime:
    """Put a time of day on the day that brings it closest to an anchor."""
    days = [anchor.date() + timedelta(days=shift) for shift in (-1, 0, 1)]
    return min((at(day, clock) for day in days), key=lambda moment: abs(moment - anchor))


def seconds_between(earlier: datetime, later: datetime) -> float:
    """Return later - earlier in seconds.

    Where a date is missing the times of day decide, as less than half a day apart.
    """
    if is_dated(earlier) and is_dated(later):
        return (later - earlier).total_seconds()
    apart = (time_of_day(later) - time_of_day(earlier)).total_seconds()
    return (apart + 43_200.0) % 86_400.0 - 43_200.0


def iso(moment: datetime) -> str:
    """Write a moment as ISO 8601 without zone; only its time when the date is unknown."""
    if is_dated(moment):
        return moment.replace(tzinfo=None).isoformat()
    return moment.time().isoformat()
