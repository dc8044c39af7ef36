"""What every request passes before a page is asked, the outermost first."""

from __future__ import annotations

from starlette.middleware import Middleware

from config.settings import Settings
from daemon.web.access.csrf import CsrfCheck
from daemon.web.access.guard import Guard, check_files
from daemon.web.access.headers import SafeHeaders
from daemon.web.access.hosts import HostCheck
from daemon.web.access.visits import Visits
from daemon.web.failing import Unexpected


def access_middleware(settings: Settings) -> list[Middleware]:
    """Return the checks of one installation's page.

    Raises AccessUnusable where password or token cannot be read: a page that nobody can log in to
    says so when it starts.
    """
    check_files(settings)
    return [
        Middleware(SafeHeaders),
        Middleware(Unexpected),
        Middleware(HostCheck, web=settings.web),
        Middleware(Visits, web=settings.web),
        Middleware(Guard, settings=settings),
        Middleware(CsrfCheck, web=settings.web),
    ]
