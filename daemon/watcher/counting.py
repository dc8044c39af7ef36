"""Count what lies in the watched folders and is not claimed yet, without listening to anything."""

from __future__ import annotations

from config.settings import Settings
from daemon.watcher.ledger import Ledger, ledger_path
from daemon.watcher.scanning import Found, scan
from daemon.watcher.territory import Territory, closed_folders, refusal, survey


def count_unclaimed(settings: Settings) -> int:
    """Count the files of all watched folders that the watcher will claim.

    A file that has not settled yet counts too: whether it has is known only to who watched it. What
    is left alone (temporary names, dotfiles, links) does not, nor what mode "copy" took before. A
    folder that is missing counts 0.
    """
    closed = closed_folders(settings)
    total = 0
    for watch in settings.watched:
        if refusal(watch.path, settings.layout):
            continue
        ledger = None
        if watch.mode == "copy":
            ledger = Ledger(ledger_path(settings.layout, str(watch.path)))
        try:
            total += _count(survey(watch.path, closed), ledger)
        except OSError:
            continue  # not mounted, or not readable for who asks
    return total


def _count(territory: Territory, ledger: Ledger | None) -> int:
    total = 0

    def note(found: Found) -> bool:
        nonlocal total
        total += ledger is None or not ledger.knows(found)
        return True

    scan(territory, note)
    return total
