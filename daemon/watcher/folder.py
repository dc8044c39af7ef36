"""One watched folder: hear, scan, let settle, claim, tidy up."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from config.logs import get_logger, short
from config.settings import Settings
from config.tables.intake import WatchSettings
from daemon.watcher.claiming import Claimer
from daemon.watcher.emptied import QUIET_SECONDS, Drops, Emptied, remove_folders
from daemon.watcher.gate import SpoolGate
from daemon.watcher.hints import Hints
from daemon.watcher.ledger import Ledger, folder_key, ledger_path
from daemon.watcher.names import NameKind, enters_folder
from daemon.watcher.outcomes import Outcome, Result
from daemon.watcher.scanning import Findings, Found, look, reaches, scan, upward
from daemon.watcher.settling import Settling
from daemon.watcher.territory import Territory, closed_folders, survey
from daemon.watcher.troubles import Troubles
from workers.spool.batches import BatchSource, EntryName

BATCH_ENTRIES = 1000
POLL_SECONDS = 5.0
"""How often a folder is scanned of which events do not tell all."""
LISTEN_AGAIN_SECONDS = 300.0
"""How long to wait before the kernel is asked again for watches that it refused."""
LATER_SECONDS = 300.0
"""How long a file must be unchanged whose name leaves open whether rsync is writing it."""
TROUBLE_SECONDS = 30.0
"""How long a file that could not be claimed is left before it is tried again."""
FULL_SECONDS = 5.0
"""How long claims pause when the spool turned out to be full."""
PENDING_LIMIT = 200_000
"""Files that are waited for at once; the others are found when these are taken."""

_TICK_SECONDS = 0.25
log = get_logger(__name__)


class WatchedFolder:
    """One watched folder: hears, scans, lets settle, claims and tidies up, a turn at a time."""

    def __init__(
        self,
        settings: Settings,
        watch: WatchSettings,
        offer: Callable[[EntryName], None],
        empty_seconds: float = QUIET_SECONDS,
        gate: SpoolGate | None = None,
    ) -> None:
        self._watch = watch
        self._layout = settings.layout
        self._offer = offer
        self._closed = closed_folders(settings)
        self._gate = gate or SpoolGate(settings.layout, settings.spool)
        # a folder is often called after people: its path is told at DEBUG alone
        self._hash = short(str(watch.path))
        log.debug("watched-folder", folder=self._hash, path=str(watch.path))
        self._troubles = Troubles(log, folder=self._hash)
        self._settling = Settling(watch.settle_seconds)
        self._emptied = Emptied(empty_seconds)
        self._territory: Territory | None = None
        self._hints: Hints | None = None
        self._claimer: Claimer | None = None
        self._ledger: Ledger | None = None
        self._drops: Drops | None = None
        self._scanned = float("-inf")
        self._scan_took = 0.0
        self._listen_again = float("-inf")
        self._paused_until = float("-inf")

    def run(self, stop: threading.Event) -> None:
        """Take turns until `stop` is set."""
        tick = min(_TICK_SECONDS, max(self._watch.settle_seconds / 4, 0.02))
        try:
            while not stop.is_set():
                try:
                    more = self.turn(time.monotonic(), stop)
                    self._troubles.over("turn")
                except OSError as error:
                    self._troubles.tell("turn", "watching-troubled", error)
                    more = not stop.wait(1.0)
                if not more:
                    stop.wait(tick)
        finally:
            self.close()

    def turn(self, now: float, stop: threading.Event) -> bool:
        """Do what is due; True when there is more to do at once. Raises OSError."""
        territory = self._arrive()
        if territory is None or not self._prepare(territory):
            stop.wait(min(1.0, self._watch.settle_seconds))
            return False
        self._listen(territory, now)
        self._hear(territory, now)
        full = len(self._settling) >= PENDING_LIMIT  # a scan could note nothing
        if now >= self._scanned + self._scan_interval() and not full:
            self._scan(now)
        return self._claim(territory, now, stop)

    def close(self) -> None:
        """Stop listening."""
        if self._hints is not None:
            self._hints.close()
            self._hints = None

    def _arrive(self) -> Territory | None:
        """Return the watched folder as it is; None while it is missing."""
        try:
            facts = os.stat(self._watch.path)
            here = self._territory
            if here is None or (here.device, here.inode) != (facts.st_dev, facts.st_ino):
                self._leave()
                self._territory = survey(self._watch.path, self._closed)
        except OSError as error:
            self._leave()
            self._troubles.tell("missing", "watched-folder-missing", error)
            return None
        if self._troubles.over("missing"):
            log.info("watched-folder-back", folder=self._hash)
        return self._territory

    def _leave(self) -> None:
        self.close()
        self._territory = None
        self._claimer = None
        self._scanned = self._listen_again = float("-inf")

    def _prepare(self, territory: Territory) -> bool:
        """Open what lies in the spool; False while that cannot be used."""
        if self._claimer is not None:
            return True
        if not self._spool_is_open():
            return False
        name = str(self._watch.path)
        if self._watch.mode == "copy":
            self._ledger = self._ledger or Ledger(ledger_path(self._layout, name))
        else:
            drops = self._layout.spool_private / f"drops-{folder_key(name)}.json"
            self._drops = self._drops or Drops(drops)
        source = BatchSource(kind="folder", folder=name)
        self._claimer = Claimer(
            self._layout, source, territory.root, self._ledger, self._gate, self._offer
        )
        return True

    def _spool_is_open(self) -> bool:
        reason = self._gate.reason()
        if reason is not None:
            self._troubles.tell("spool", "claims-paused", reason=reason)
        elif self._troubles.over("spool"):
            log.info("claims-resumed", folder=self._hash)
        return reason is None

    def _listen(self, territory: Territory, now: float) -> None:
        """Have the kernel tell what happens, where it can."""
        if self._watch.events == "poll" or territory.network:
            return
        if self._hints is not None and not self._hints.alive:
            log.warning("listening-ended", folder=self._hash)
            self.close()
            self._listen_again = now + 1.0
        if self._hints is not None and self._hints.limited:
            self._troubles.tell("limit", "watch-limit-reached", scan_seconds=self._scan_interval())
            if now >= self._listen_again:
                self.close()
        if self._hints is None and now >= self._listen_again:
            self._listen_again = now + LISTEN_AGAIN_SECONDS
            self._scanned = float("-inf")  # what came before we listened
            try:
                hints = Hints(territory.root, _wanted(territory))
                hints.start()
                self._hints = hints
                self._troubles.over("listen")
            except OSError as error:
                self._troubles.tell("listen", "listening-refused", error)

    def _hear(self, territory: Territory, now: float) -> None:
        """Look at what events told."""
        if self._hints is None:
            return
        told = self._hints.take()
        if told.lost:
            log.info("events-lost", folder=self._hash)
            self._scanned = float("-inf")
        folders = {folder for full in told.folders if (folder := _inside(territory, full))}
        for folder in _topmost(folders):
            if reaches(territory, folder):
                self._tell(scan(territory, lambda found: self._note(found, now), folder))
        known: dict[str, bool] = {"": True}
        for full in told.files:
            path = _inside(territory, full)
            if not path:
                continue
            folder = os.path.dirname(path)
            if folder not in known:
                known[folder] = reaches(territory, folder)
            found = look(territory, path) if known[folder] else None
            if found is not None:
                self._note(found, now)

    def _scan(self, now: float) -> None:
        """Look at everything."""
        territory = self._territory = survey(self._watch.path, self._closed)
        present: set[str] = set()

        def note(found: Found) -> bool:
            if self._ledger is not None:
                present.add(found.path)
            return self._note(found, now)

        findings = scan(territory, note)
        self._tell(findings)
        ended = time.monotonic()
        self._scan_took = max(0.0, ended - now)
        self._scanned = ended if findings.whole else float("-inf")
        if findings.whole and not findings.troubles and self._ledger is not None:
            self._ledger.saw(present, now)
        if findings.whole and self._drops is not None:
            self._tidy(territory, findings, now)

    def _scan_interval(self) -> float:
        seconds = self._watch.scan_seconds
        if self._hints is None or self._hints.limited:
            seconds = min(seconds, POLL_SECONDS)
        return max(seconds, 4 * self._scan_took)  # a slow share is not read all the time

    def _note(self, found: Found, now: float) -> bool:
        """Let a file settle; False when enough are waited for: a scan finds the others later."""
        if self._ledger is not None and self._ledger.knows(found):
            return True
        if len(self._settling) >= PENDING_LIMIT and found.path not in self._settling:
            self._scanned = float("-inf")
            return False
        later = LATER_SECONDS if found.kind is NameKind.LATER else 0.0
        self._settling.saw(found.path, found.state, now, later)
        return True

    def _tell(self, findings: Findings) -> None:
        for path, error in findings.troubles.items():
            self._troubles.tell(f"folder {path}", "folder-unreadable", error, what=short(path))
        for path, kind in findings.odd.items():
            self._troubles.tell(f"odd {path}", "left-alone", what=short(path), kind=kind)

    def _claim(self, territory: Territory, now: float, stop: threading.Event) -> bool:
        """Claim what has settled, one batch; True when there may be more."""
        due = self._settling.next_due()
        if due is None or due > now or now < self._paused_until or not self._spool_is_open():
            return False
        known: dict[str, bool] = {"": True}
        paths = self._settling.due(now, BATCH_ENTRIES)
        settled = [found for path in paths if (found := self._settled(territory, path, now, known))]
        if settled and self._claimer is not None:
            try:
                self._learn(self._claimer.take(settled, _going_on(stop, self._gate)))
                self._troubles.over("full")
            except OSError as error:
                self._paused_until = time.monotonic() + FULL_SECONDS
                self._troubles.tell("full", "claims-failed", error)
        return len(paths) >= BATCH_ENTRIES

    def _settled(
        self, territory: Territory, path: str, now: float, known: dict[str, bool]
    ) -> Found | None:
        folder = os.path.dirname(path)
        if folder not in known:
            known[folder] = reaches(territory, folder)
        found = look(territory, path) if known[folder] else None
        if found is None or (self._ledger is not None and self._ledger.knows(found)):
            self._settling.forget(path)
            self._troubles.over(f"file {path}")
            return None
        return found if self._settling.confirm(path, found.state, now) else None

    def _learn(self, results: list[Result]) -> None:
        taken = []
        for result in results:
            path = result.found.path
            if result.outcome is Outcome.TROUBLE:
                self._settling.postpone(path, time.monotonic() + TROUBLE_SECONDS)
                self._troubles.tell(f"file {path}", "claim-failed", result.error, what=short(path))
                continue
            self._troubles.over(f"file {path}")
            if result.outcome is Outcome.TAKEN:
                taken.append(path)
            if result.outcome in (Outcome.TAKEN, Outcome.GONE):
                self._settling.forget(path)
        if taken:
            log.info("claimed", folder=self._hash, entries=len(taken))
            if self._drops is not None:
                self._drops.add(taken)

    def _tidy(self, territory: Territory, findings: Findings, now: float) -> None:
        """Remove the empty folders that a drop left behind."""
        if self._drops is None:
            return
        self._drops.retain(os.listdir(territory.root))
        cover = self._drops.cover
        self._emptied.saw(
            {folder: state for folder, state in findings.hollow.items() if cover(folder)}, now
        )
        removed = remove_folders(territory.root, self._emptied.due(now))
        if removed:
            log.info("emptied-folders-removed", folder=self._hash, folders=removed)


def _going_on(stop: threading.Event, gate: SpoolGate) -> Callable[[], bool]:
    """Return what tells between two files whether to go on; it looks at the spool every second."""
    looked = time.monotonic()

    def going_on() -> bool:
        nonlocal looked
        now = time.monotonic()
        if now - looked >= 1.0:
            looked = now
            if gate.reason() is not None:
                return False
        return not stop.is_set()

    return going_on


def _wanted(territory: Territory) -> Callable[[str], bool]:
    def wanted(full: str) -> bool:
        if full == territory.root:
            return True
        here = territory.root.rstrip("/")
        for part in _inside(territory, full).split("/"):
            here = f"{here}/{part}"
            if not enters_folder(part) or here in territory.closed:
                return False
        return True

    return wanted


def _inside(territory: Territory, full: str) -> str:
    """Return a full path relative to the root; empty where it is none below it."""
    head = territory.root.rstrip("/") + "/"
    return full[len(head) :] if full.startswith(head) else ""


def _topmost(folders: set[str]) -> list[str]:
    """Leave out the folders that lie below another one of them."""
    return [
        folder
        for folder in folders
        if not any(above in folders for above in upward(os.path.dirname(folder)))
    ]
