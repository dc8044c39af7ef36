"""What every comparison works with: the installation, the report, and whether to mend."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from config.layout import Layout
from config.settings import Settings
from workers.checking.codes import Code
from workers.checking.findings import Finding, Outcome, Report
from workers.index.engine import MetadataIndex

Progress = Callable[[str, int, int], None]
"""Told what is looked at, how much of it is done, and of how much (0: unknown)."""


@dataclass(frozen=True)
class Scene:
    """One run of `check`."""

    settings: Settings
    index: MetadataIndex
    checksums: bool = False
    repair: bool = False
    settle_seconds: float = 2.0
    """How long a worker is given to end what looks undone."""
    report: Report = field(default_factory=Report)
    progress: Progress = lambda what, done, total: None
    sleep: Callable[[float], None] = time.sleep

    @property
    def layout(self) -> Layout:
        return self.settings.layout

    def tell(self, code: Code, where: str, detail: str = "") -> None:
        """Report what nothing is to be done about, or can be."""
        outcome = Outcome.LEFT if self.repair else Outcome.FOUND
        self.report.add(Finding(code, where, detail), outcome)

    def settle(self, code: Code, where: str, detail: str, mend: Callable[[], str | None]) -> None:
        """Report a finding, and with --repair mend it.

        `mend` returns None where that went well, else in words why not.
        """
        finding = Finding(code, where, detail)
        if not self.repair:
            self.report.add(finding)
            return
        try:
            why_not = mend()
        except OSError as error:
            why_not = error.strerror or type(error).__name__
        outcome = Outcome.LEFT if why_not else Outcome.MENDED
        self.report.add(finding, outcome, why_not or "")
