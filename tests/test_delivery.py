"""A delivery of another system: adopted, killed half-way, resumed; then one more series comes."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sqlite3
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from filing_world import encoded, settings_for
from installation import Installation
from running import petct, running, wait_until

from workers.export.dictionary import dictionary_rows
from workers.index.engine import open_index
from workers.phantom.study import PhantomSpec, make_study

STUDIES = 50
LATE = "PET AC"
"""The series of the last study that is not delivered."""

_UID = re.compile(rb"2\.25\.(\d{36})\d{3}")


def of_patient(content: bytes, number: int) -> bytes:
    """The same instance of another patient, whose UIDs are as long."""
    content = _UID.sub(rb"2.25.\g<1>%03d" % number, content)
    content = content.replace(b"PHANTOM-0001", b"PHANTOM-%04d" % number)
    return content.replace(b"P000001S0001", b"P%06dS0001" % number)


def deliver(to: Path, late: Path) -> int:
    """Lay studies out with the digits of another system; what is late goes elsewhere."""
    lots, count = random.Random(7), 0
    study = make_study(PhantomSpec(size="tiny"))
    series = {
        one.name: [encoded(one.dataset(index)) for index in range(one.count)]
        for one in study.series
    }
    for number in range(1, STUDIES + 1):
        home = to / f"PHANTOM-{number:04d}" / f"P{number:06d}S0001" / "studies"
        digits = [f"{lots.randrange(10**5):05d}" for _ in range(2 + 2 * len(series))]
        for place, (name, contents) in enumerate(series.items(), 1):
            folder = home.joinpath(*digits[:2], *digits[2 * place : 2 * place + 2])
            if (number, name) == (STUDIES, LATE):
                folder = late
            else:
                count += len(contents)
            folder.mkdir(parents=True)
            for index, content in enumerate(contents):
                (folder / f"IM{index:04d}").write_bytes(of_patient(content, number))
    return count


def as_delivered(tree: Path) -> dict[str, tuple[object, ...]]:
    """Inode, mtime, mode and bytes of every file that was delivered."""
    found: dict[str, tuple[object, ...]] = {}
    for path in tree.rglob("IM*"):
        facts, digest = path.lstat(), hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path)] = (facts.st_ino, facts.st_mtime_ns, facts.st_mode, digest)
    return found


def reindex(root: Path, *words: object) -> list[str]:
    return petct("reindex", "--root", root, "--config", root.parent / "site.toml", *words)


def told_by(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def known_of(root: Path, delivery: Path) -> list[Any]:
    """All that an index knows of instances and pairs."""
    index = open_index(settings_for(root, paths={"archive": str(delivery)}))
    with index.read() as connection:
        pairs = connection.exec_driver_sql(
            "select study.study, pair.state, pair.pet, pair.ct, pair.generation, pair.wanted,"
            " pair.revision, pair.folder from pair join study on study.id = pair.study_id"
            " order by study.study"
        ).all()
    rows = [*dictionary_rows(index, "instance")]
    index.close()
    return [*rows, *map(tuple, pairs)]


def counted(site: Installation, question: str) -> int:
    with suppress(sqlite3.OperationalError):  # its tables are being made
        for (number,) in site.ask(question):
            return int(number)
    return 0


@pytest.mark.timeout(300)  # fifty pairs, with their pictures
def test_a_delivery_survives_kills_and_its_late_series_joins_it(tmp_path: Path) -> None:
    delivery, late = tmp_path / "delivery", tmp_path / "late"
    count = deliver(delivery, late)
    before = as_delivered(delivery)
    assert len(before) == count
    (tmp_path / "site.toml").write_text(
        f'[paths]\narchive = "{delivery}"\n[pairing]\nworkers = 2\n[spool]\nminimum_free_mb = 1\n'
    )
    site = Installation(tmp_path)

    def filed() -> int:
        return counted(site, "select count(*) from instance")

    def made() -> int:
        return counted(site, "select count(*) from pair where state = 'ready'")

    # killed while it reads, and again while it makes pairs; its helpers end with it
    with running(reindex(site.root), tmp_path / "first"):
        wait_until(lambda: filed() > count // 3, 100, "a part of the files")
    assert filed() < count
    with running(reindex(site.root), tmp_path / "second"):
        wait_until(lambda: made() > 4, 200, "a part of the pairs")
    assert (filed(), made() < STUDIES - 1) == (count, True)

    told = told_by(reindex(site.root, "--json"))
    assert (told["files"], told["adopted"], told["unchanged"]) == (count, 0, count)
    assert told["findings"] == {}
    assert told["pairs"].keys() == {"ready"}
    assert made() == len(list(delivery.glob("*/*/Auto-Paired"))) == STUDIES - 1
    assert as_delivered(delivery) == before

    # one that nobody disturbs knows the same, and takes every pair for its own
    other = tmp_path / "undisturbed"
    told = told_by(reindex(other, "--json", "--no-pair"))
    assert (told["adopted"], told["pairs_taken_over"], told["pairs_wanted"]) == (
        count, STUDIES - 1, 0,
    )  # fmt: skip
    assert known_of(site.root, delivery) == known_of(other, delivery)

    with site.run("--config", str(tmp_path / "site.toml")):
        with site.sending(sorted(late.iterdir())) as sender:
            assert sender.process.wait(30) == 0, sender.stderr
        wait_until(lambda: made() == STUDIES, 60, "the pair of the late series")
    studies = delivery / f"PHANTOM-{STUDIES:04d}" / f"P{STUDIES:06d}S0001" / "studies"
    assert len(list(studies.glob("*/*"))) == 1, "one study, one pair of folders"
    assert len(list(studies.glob("*/*/*/*"))) == 7
    assert len(list(studies.glob("*/*/*/*/*.dcm"))) == len(list(late.iterdir()))
    assert as_delivered(delivery) == before
