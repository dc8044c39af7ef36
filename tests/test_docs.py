"""What the pages below docs/ say in tables is what the code has, and their commands run.

test_readme.py looks up every name that a paper has; here tables are compared with the code, and the
commands are run in one walk of a small installation.
"""

import os
import re
import shlex
import shutil
import sqlite3
import ssl
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import PROJECT, missing
from installation import AE_TITLE, Installation, dcmtk
from pydicom.uid import UID
from pynetdicom.presentation import VerificationPresentationContexts
from pynetdicom.sop_class import StorageCommitmentPushModelInstance
from running import WITHOUT_PAGE, wait_until
from typer.testing import CliRunner

from config.settings import load_settings
from config.tables.intake import CommitmentSettings, ReceiverSettings
from daemon.cli import app as frame
from daemon.receiver import access, asking, commitment, lobby, negotiation, part10, storing, tls
from daemon.receiver.listening import BACKLOG
from daemon.receiver.negotiation import Service, service_of
from daemon.receiver.talking import CONTEXT
from daemon.watcher.names import TEMPORARY_ENDINGS
from workers.commitment.verdicts import FailureReason
from workers.pairing.held import HELD_WORDS, HeldReason

DOCS = sorted((PROJECT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
CONFORMANCE = (PROJECT / "docs/conformance.md").read_text()
UID_FORM = r"1\.2\.840\.10008\.[\d.]+"

pytestmark = pytest.mark.timeout(180)  # the walk counts for whichever test asks for it first


def table(text: str, first: str, number: int = 0) -> list[list[str]]:
    """The rows of the table whose head begins with this cell; of several the one so numbered."""
    heads = list(re.finditer(rf"^\| {re.escape(first)} \|.*\n\|[-| ]+\|\n", text, re.MULTILINE))
    body = text[heads[number].end() :].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in body.splitlines()]


# the conformance statement ------------------------------------------------------------------------


def statuses(module: object) -> set[str]:
    """The 16-bit statuses that a module names, as the page writes them."""
    return {
        f"{value:04X}"
        for name, value in vars(module).items()
        if name.isupper() and type(value) is int and not name.startswith(("_", "MOST_", "ROOM_"))
    }


def test_every_status_of_a_c_store_stands_there_with_its_reasons():
    rows = table(CONFORMANCE, "status", 0)
    assert {row[0] for row in rows} == statuses(storing)
    counted = {reason for row in rows for reason in CODE.findall(row[3])}
    assert counted == {str(one) for one in storing.Refusal}


def test_every_status_of_a_request_for_commitment_stands_there():
    rows = table(CONFORMANCE, "status", 1)
    assert {row[0] for row in rows} == statuses(commitment) | statuses(asking)
    assert str(StorageCommitmentPushModelInstance) in CONFORMANCE


def test_every_reason_of_a_failed_commitment_stands_there():
    given = {f"{one:04X}" for one in FailureReason if one}
    assert {row[0] for row in table(CONFORMANCE, "reason")} == given
    page = (PROJECT / "docs/commitment.md").read_text()
    assert {row[0] for row in table(page, "Failure Reason")} == given


def test_every_rejection_stands_there_with_its_code():
    verdicts = {
        (one.code, one.words)
        for one in vars(access).values()
        if isinstance(one, access.Verdict) and not one.accepted
    }
    rows = dict(table(CONFORMANCE, "rejected with"))
    assert {code for code, _ in verdicts} == set(rows)
    assert all(words in rows[code] for code, words in verdicts)


def test_the_lossless_transfer_syntaxes_are_those_that_are_preferred():
    rows = table(CONFORMANCE, "transfer syntax")
    assert {uid for _, uid in rows} == negotiation.LOSSLESS_LITTLE_ENDIAN
    assert [name for name, _ in rows] == [UID(uid).name for _, uid in rows]
    assert f"Explicit VR Big Endian ({negotiation.BIG_ENDIAN}, retired)" in CONFORMANCE


def test_the_syntaxes_of_the_two_other_services_are_those_that_are_offered():
    rows = dict(row[:2] for row in table(CONFORMANCE, "abstract syntax"))
    (verification,) = VerificationPresentationContexts
    ours = {"Verification SOP Class": verification, CONTEXT.abstract_syntax.name: CONTEXT}
    for name, context in ours.items():
        (row,) = (cell for head, cell in rows.items() if head.startswith(name))
        for syntax in context.transfer_syntax:
            assert UID(syntax).name.replace("Deflated Explicit VR Little Endian", "Deflated") in row


@pytest.mark.parametrize(
    ("first", "service"), [("SOP class", Service.STORAGE), ("refused", Service.OTHER)]
)
def test_the_classes_that_are_named_are_served_or_refused_as_it_says(first, service):
    for name, uid, *_ in table(CONFORMANCE, first):
        assert UID(uid).name == name
        assert service_of(UID(uid)) is service


def test_the_settings_of_the_association_have_the_defaults_that_stand_there():
    said = {CODE.findall(name)[0]: default for name, default, _ in table(CONFORMANCE, "setting")}
    assert said == {**defaults("receiver", ReceiverSettings()),
                    **defaults("commitment", CommitmentSettings())}  # fmt: skip


def defaults(prefix: str, settings: object) -> dict[str, str]:
    found = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if name == "tls":
            found |= defaults(f"{prefix}.tls", value)
        else:
            found[f"{prefix}.{name}"] = as_toml(value)
    return found


def as_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, float):
        return f"{value:g}"
    return {None: "", (): "[]"}.get(value, str(value))


def test_the_numbers_of_the_association_are_the_programs():
    told = dict(table(CONFORMANCE, "policy"))
    assert told["implementation class UID"] == part10.IMPLEMENTATION_CLASS_UID
    assert told["implementation version name"] == part10.IMPLEMENTATION_VERSION_NAME
    assert told["application context"] == access.APPLICATION_CONTEXT
    settings = ReceiverSettings()
    once = re.findall(r"\d+", told["associations at once"])
    assert once == [str(one) for one in (
        settings.maximum_associations, settings.maximum_associations_per_peer,
        BACKLOG, lobby.MOST_WAITING,
    )]  # fmt: skip
    assert f"{lobby.MOST_REQUEST_BYTES:,} bytes" in told["length of a request"]
    assert f"{settings.maximum_pdu:,} bytes" in told["maximum PDU received"]


def test_the_suites_of_tls_1_2_are_those_that_are_taken():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(tls._CIPHERS)
    taken = {one["name"] for one in context.get_ciphers() if one["protocol"] == "TLSv1.2"}
    assert {row[0] for row in table(CONFORMANCE, "suite (OpenSSL)")} == taken


# held, watch, architecture, the index of the pages ------------------------------------------------


def test_every_reason_for_holding_stands_there_in_its_words():
    page = (PROJECT / "docs/held.md").read_text()
    said = {CODE.findall(word)[0]: means for word, means, *_ in table(page, "word")}
    assert said == {str(one): HELD_WORDS[one] for one in HeldReason}


def test_every_ending_that_is_left_alone_stands_there():
    page = (PROJECT / "docs/watch.md").read_text()
    assert CODE.findall(table(page, "left alone")[0][0]) == list(TEMPORARY_ENDINGS)


def test_every_room_of_the_code_stands_in_the_architecture():
    page = (PROJECT / "docs/architecture.md").read_text()
    rooms = {
        f"{package}/{folder.name}/"
        for package in ("workers", "daemon")
        for folder in (PROJECT / package).iterdir()
        if (folder / "__init__.py").exists()
    }
    assert {CODE.findall(row[0])[0] for row in table(page, "room")} == rooms | {"config/"}


def test_every_role_of_the_command_line_stands_among_the_processes():
    page = (PROJECT / "docs/architecture.md").read_text()
    said = {CODE.findall(row[0])[0].split()[1] for row in table(page, "process")}
    panel = {entry.name for entry in frame.COMMANDS if entry.panel == "Run"}
    assert said == panel - {"demo"}


def test_the_index_of_the_pages_has_them_all():
    page = (PROJECT / "docs/README.md").read_text()
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", page))
    assert linked == {path.name for path in DOCS} - {"README.md"}


def test_the_picture_is_well_formed_and_takes_nothing_from_elsewhere():
    text = (PROJECT / "docs/pictures/architecture.svg").read_text()
    ElementTree.fromstring(text)  # noqa: S314 - our own
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_the_anchors_that_a_page_links_to_are_headings(path):
    text = FENCE.sub("", path.read_text())
    for target, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", text):
        page = path.parent / target if target else path
        titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in titles}
        assert anchor in slugs, f"{target}#{anchor}"


def toml_blocks() -> list[tuple[str, str]]:
    return [
        (path.name, body)
        for path in DOCS
        for kind, body in FENCE.findall(path.read_text())
        if kind == "toml"
    ]


@pytest.mark.parametrize(("page", "block"), toml_blocks())
def test_the_settings_that_a_page_shows_are_settings(tmp_path, page, block):
    (tmp_path / "petct.toml").write_text(block)
    load_settings(tmp_path / "petct.toml", root=tmp_path / "root", environ={})


# the commands -------------------------------------------------------------------------------------


class Left(StrEnum):
    """Why a command of a page is not run here."""

    ROOT = "it needs root; tests/test_install.py and tests/test_systemd.py look at what it writes"
    AWAY = "it needs a host, a repository or containers that are not here"
    TLS = "tests/test_tls.py runs this block as a whole, with the certificates that it makes"
    TERMINAL = "it asks on a terminal; tests/test_web_access.py"
    WEBHOOK = "it needs the server that is told; tests/test_notifying.py"
    STORE = "it needs an object store; tests/test_mirror.py"
    IDLE = "it ends after ten idle seconds; tests/test_elastic.py"


LEFT = (
    (r"^sudo|^sudoedit", Left.ROOT),
    (r"^git clone|^docker ", Left.AWAY),
    (r"openssl|server\.(ext|key)|\+tls|--anonymous-tls", Left.TLS),
    (r" web password", Left.TERMINAL),
    (r" notify .*--test", Left.WEBHOOK),
    (r" work pairing .*--drain", Left.IDLE),
    (r"petct-ingest mirror |^aws |/srv/petct", Left.STORE),
)
LATER = "petct-ingest reindex "
"""Run when the daemon has ended."""


ENDS = {
    "petct-ingest doctor": {0, 3},  # the machine of the tests may lack what a server should have
    "petct-ingest pair gap gap-pair": {0, 3},
}
"""Which commands may end with another code than 0."""


def commands() -> list[tuple[str, str]]:
    return [
        (path.name, line)
        for path in DOCS
        for kind, body in FENCE.findall(path.read_text())
        if kind == "sh"
        for line in body.splitlines()
        if line
    ]


def why_left(command: str) -> Left | None:
    return next((why for pattern, why in LEFT if re.search(pattern, command)), None)


RUN = [one for one in commands() if why_left(one[1]) is None]


@dataclass
class Done:
    code: int
    output: str


class Walk:
    """An installation that runs, and the commands of the pages one after the other."""

    def __init__(self, folder: Path) -> None:
        self.one = Installation(folder)
        self.work = folder / "work"
        self.work.mkdir()
        self.config = folder / "config.toml"
        self.config.write_text(f'root = "{self.one.root}"\n')
        self.environment = {
            **{key: value for key, value in os.environ.items() if "PETCT" not in key},
            **WITHOUT_PAGE,
            "PETCT_INGEST_ROOT": str(self.one.root),
            "PETCT_INGEST_RECEIVER__PORT": str(self.one.port),
            "PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}",
            "TCP_NODELAY": "1",
        }
        self.study = self.instance = ""
        self.done: dict[str, Done] = {}

    def here(self, command: str) -> str:
        """The command with the places and names of this installation in the place of examples."""
        for example, ours in (
            ("/opt/petct-ingest/bin/", ""),
            ("--archive /data/delivery --root /var/lib/petct-ingest",
             f"--archive {self.work}/delivery --root {self.work}/adopted"),
            ("/var/lib/petct-ingest", self.one.root),
            ("/etc/petct-ingest/config.toml", self.config),
            ("/data/drop", self.work / "patients"),
            ("--root DIR", f"--root {self.one.root}"),
            (" index.sqlite ", f" {self.one.layout.index} "),
            (" --follow", ""),
            ("STUDY", self.study),
            ("2.25.208423052287556080028705816589467872642", self.study),
            ("--study UID", f"--study {self.study}"),
            ("--instance UID", f"--instance {self.instance}"),
            ("11112", self.one.port),
        ):  # fmt: skip
            command = command.replace(example, str(ours))
        return command

    def run(self, command: str) -> None:
        mine = self.here(command)
        words = shlex.split(mine)
        if words[0] == "sqlite3":
            self.done[command] = ask(*words[2:])
        elif words[0] == "petct-ingest":
            self.done[command] = self._petct(words[1:])
        elif not shutil.which(words[0], path=self.environment["PATH"]):
            self.done[command] = Done(127, words[0])
        else:
            done = subprocess.run(
                ["bash", "-c", mine], cwd=self.work, env=self.environment, capture_output=True,
                text=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
            self.done[command] = Done(done.returncode, done.stdout + done.stderr)

    def _petct(self, words: list[str]) -> Done:
        """Run it in this process: thirty times an interpreter would take most of the time."""
        back = Path.cwd()
        os.chdir(self.work)
        try:
            found = CliRunner().invoke(frame.app, words, env=self.environment)
        finally:
            os.chdir(back)
        return Done(found.exit_code, f"{found.output}{found.exception or ''}")


def ask(file: str, question: str) -> Done:
    """What the sqlite3 program would do, which is not everywhere."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return Done(0, str(connection.execute(question).fetchall()))


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> Walk:
    """Send first (docs/send.md), look then, and reindex when nothing runs."""
    dcmtk("dcmsend")
    one = Walk(tmp_path_factory.mktemp("docs"))
    sending = [command for page, command in RUN if page == "send.md"]
    looking = [command for page, command in RUN if page != "send.md" and LATER not in command]
    with one.one.run(PETCT_INGEST_RECEIVER__PORT=str(one.one.port)) as daemon:
        for command in sending:
            one.run(command)
        wait_until(lambda: one.one.ask("select 1 from pair where state = 'ready'"), 60, "the pair")
        ((one.study,),) = one.one.ask("select study from study")
        ((one.instance,),) = one.one.ask("select min(instance_uid) from instance")
        for command in looking:
            one.run(command)
        assert daemon.end() == 0
    shutil.copytree(one.one.layout.archive, one.work / "delivery",
                    ignore=shutil.ignore_patterns(".petct", "Auto-Paired"))  # fmt: skip
    for command in (command for _, command in RUN if LATER in command):
        one.run(command)
    return one


@pytest.mark.parametrize(("page", "command"), RUN)
def test_a_command_of_a_page_does_its_work(walk, page, command):
    done = walk.done[command]
    if done.code == 127:
        missing(done.output)
    assert done.code in ENDS.get(command.partition(" --")[0], {0}), done.output


def test_what_the_page_of_sending_sends_is_filed_once(walk):
    sent = len(list((walk.work / "patients").rglob("*.dcm")))
    outcomes = dict(walk.one.ask("select outcome, count(*) from arrival group by outcome"))
    assert outcomes == {"filed": sent, "duplicate": 2 * sent}
    (source,) = {row[0] for row in walk.one.ask("select source from series")}
    assert source == f"PACS1>{AE_TITLE}@127.0.0.1"


def test_the_gap_of_the_page_of_held_studies_is_held_until_it_is_forced(walk):
    held, forced = [walk.done[one] for page, one in RUN if page == "held.md" and " pair " in one]
    assert (held.code, forced.code) == (3, 0)
    assert "7 of 8" in held.output


def test_nothing_is_left_out_without_need():
    assert {why_left(command) for _, command in commands()} - {None} == set(Left)
    for pattern, _ in LEFT:
        assert any(re.search(pattern, command) for _, command in commands()), pattern
