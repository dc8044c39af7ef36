"""Show a page: one template with what it needs, every value escaped."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from daemon.web.reading import Installation
from workers import clock

PLACES = (
    ("/", "Overview"),
    ("/studies", "Studies"),
    ("/held", "Held"),
    ("/quarantine", "Quarantine"),
    ("/upload", "Upload"),
    ("/sources", "Sources"),
    ("/settings", "Settings"),
)
"""The pages that the navigation names."""

_UNITS = ("bytes", "KB", "MB", "GB", "TB", "PB")


def page(request: Request, name: str, status: int = 200, **context: Any) -> HTMLResponse:
    """Render a template (`templates/<name>`) for a request."""
    environment: Environment = request.app.state.templates
    shown = environment.get_template(name).render(
        request=request,
        path=request.url.path,
        places=places(request),
        zone=zone(),
        called=installation(request).called,
        **context,
    )
    return HTMLResponse(shown, status_code=status)


def installation(request: Request) -> Installation:
    """Return the installation that a request looks at."""
    found: Installation = request.app.state.installation
    return found


def places(request: Request) -> tuple[tuple[str, str], ...]:
    """Return the navigation: address and name of each page."""
    uploads = installation(request).settings.web.uploads
    return tuple(place for place in PLACES if uploads or place[0] != "/upload")


def templates() -> Environment:
    """Return the environment of all templates; everything is escaped, nothing may be undefined."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "moment": moment,
        "seconds": seconds,
        "size": size,
        "number": number,
        "plain": plain,
        "ago": ago,
        "until": until,
    }
    return environment


def moment(at: str | None) -> Markup:
    """Show a time of the index (ISO 8601 UTC) in this machine's zone, to the second."""
    if not at:
        return Markup("–")
    local = datetime.fromisoformat(at).astimezone()
    return Markup('<time datetime="{}">{}</time>').format(at, local.strftime("%Y-%m-%d %H:%M:%S"))


def zone() -> str:
    """Name the zone that times are shown in."""
    now = datetime.now().astimezone()
    offset = now.strftime("%z")
    return f"{now.tzname()} (UTC{offset[:3]}:{offset[3:]})"


def seconds(value: float | None) -> str:
    """Show a duration in words: `0.8 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
    if value is None:
        return "–"
    if value < 10:
        return f"{max(0.0, value):.1f} s"
    whole = round(value)
    for unit, below, smaller, name in (("d", 86400, 3600, "h"), ("h", 3600, 60, "min"),
                                       ("min", 60, 1, "s")):  # fmt: skip
        if whole >= below:
            rest = whole % below // smaller
            return f"{whole // below} {unit} {rest} {name}" if rest else f"{whole // below} {unit}"
    return f"{whole} s"


def size(count: float) -> str:
    """Show a number of bytes in a unit that fits (1 KB = 1000 bytes)."""
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    digits = 0 if unit == 0 or count >= 99.5 else 1
    return f"{count:.{digits}f} {_UNITS[unit]}"


def ago(at: str) -> str:
    """Show how long ago a time of the index was."""
    return seconds(clock.seconds_since(at))


def until(begin: str, end: str) -> str:
    """Show how long it was from one time of the index to another."""
    first, last = datetime.fromisoformat(begin), datetime.fromisoformat(end)
    return seconds((last - first).total_seconds())


def number(value: int | float | None) -> str:
    """Show a number with thin groups of thousands."""
    return "–" if value is None else f"{value:,}"


def plain(value: object) -> str:
    """Show a value of a header in one line: control characters are escaped."""
    text = "" if value is None else str(value)
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
