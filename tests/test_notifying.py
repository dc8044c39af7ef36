"""Notifications: everything once it happened, in order, signed, and without a patient."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from conftest import PROJECT
from filing_world import World, a_world
from running import petct, running, wait_until
from told_servers import SECRET, Hook, Mailbox, a_hook, a_mailbox
from typer.testing import CliRunner

from config.errors import BadValue
from config.settings import Settings, load_settings
from daemon.cli.app import app
from daemon.errors import Undelivered
from daemon.notifying.channel import MARKS, Channel
from daemon.notifying.disks import turns
from daemon.notifying.mail import MOST_LINES, Email
from daemon.notifying.notices import Notice, Topic
from daemon.notifying.pacing import LONGEST_PAUSE_SECONDS, Pace
from daemon.notifying.telling import senders_of
from daemon.notifying.webhook import MOST_NOTICES, Webhook, signed_headers
from daemon.planning import plan_roles
from workers.durable import FreeSpace
from workers.filing.rows import insert_event
from workers.index.marks import forget_marks
from workers.index.tables import arrival, event, study
from workers.pairing.held import HELD_WORDS, HeldReason, held_reason
from workers.watermark import Reserve, StoreRoom

PATIENT, STUDY, DESCRIPTION = "PAT-4711", "1.2.826.4711", "Knee of Doe^Jane\r\nBcc: x@example.org"
AT = "2026-01-31T10:00:00.000Z"


@pytest.fixture
def hook() -> Iterator[Hook]:
    with a_hook() as one:
        yield one


@pytest.fixture
def world(tmp_path: Path, hook: Hook) -> Iterator[World]:
    """An installation with one study, whose webhook is told at once."""
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    told = {"url": hook.url, "secret_file": str(tmp_path / "secret"), "timeout_seconds": 5}
    notify = {"webhook": told, "batch_seconds": 0, "public_url": "https://petct.example.org/"}
    spool = {"minimum_free_mb": 0, "minimum_free_inodes": 0}
    with a_world(tmp_path / "root", notify=notify, spool=spool) as one:
        with one.index.write() as connection:
            connection.execute(
                study.insert().values(
                    id=17, study=STUDY, patient_ID=PATIENT, study_description=DESCRIPTION,
                    first_at=AT, last_at=AT,
                )
            )  # fmt: skip
        yield one


def happens(world: World, kind: str = "pair-ready", **details: Any) -> None:
    """Let something happen to the study."""
    details = {"revision": 1, **details}
    with world.index.write() as connection:
        insert_event(connection, kind, AT, study_id=17, source="DOE>US@10.0.0.7", **details)


def with_notify(settings: Settings, **changes: Any) -> Settings:
    notify = settings.notify.model_copy(update=changes)
    return settings.model_copy(update={"notify": notify})


def channel_of(world: World, **changes: Any) -> Channel:
    settings = with_notify(world.settings, **changes)
    return Channel(world.index, settings, Webhook(settings))


def numbers(hook: Hook) -> list[int]:
    return [int(one.split("-")[1]) for one in hook.ids]


# the webhook --------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_a_receiver_that_was_down_gets_every_event_in_order_and_signed(
    world: World, hook: Hook
) -> None:
    channel = channel_of(world)
    hook.status = 503
    tries = []
    for now in range(0, 100):
        if now < 25:
            for _ in range(10):
                happens(world)
        before = hook.asked
        channel.tick(float(now))
        tries += [now] * (hook.asked - before)
    # all that was down the hook saw, at growing distances; then it is up, and never asked in vain
    assert tries == [0, 5, 15, 35, 75]
    hook.status = 200
    now = 400.0
    while channel.tick(now):
        now += 0.1
    assert numbers(hook) == list(range(1, 251))
    assert [len(message["events"]) for message in hook.taken] == [MOST_NOTICES] * 2 + [50]
    channel.tick(now + 1000)
    assert len(hook.ids) == 250


def test_nothing_of_a_patient_is_told(world: World, hook: Hook) -> None:
    channel = channel_of(world)
    uid = "1.2.3.4711"
    happens(world, "pair-ready", pet=uid, ct=uid)
    happens(world, "pair-held", reasons=[f"the chosen PET …{uid} {DESCRIPTION}: choose another"])
    with world.index.write() as connection:
        connection.execute(
            arrival.insert().values(
                entry="entry", source="DOE>US@10.0.0.7", outcome="quarantined", code="bad-data",
                reason=f"the name is {DESCRIPTION}", instance_uid=uid, at=AT,
            )
        )  # fmt: skip
        insert_event(connection, "quarantined", AT, study_id=17, entry="entry", code="bad-data")
    channel.tick(0.0)
    ready, held, aside = hook.taken[0]["events"]
    assert ready["words"] == "a pair is ready (revision 1)"
    assert (held["words"], held["code"]) == (
        "a study is held: the series that was chosen cannot be used",
        "choice",
    )
    assert (aside["kind"], aside["code"], aside["topic"]) == (
        "quarantined",
        "bad-data",
        "quarantined",
    )
    assert {one["study"] for one in (ready, held, aside)} == {17}
    assert ready["link"] == held["link"] == "https://petct.example.org/studies/17"
    assert aside["link"] == "https://petct.example.org/quarantine"
    for secret in (PATIENT, STUDY, "Doe", "DOE", "Knee", uid, "10.0.0.7"):
        assert secret.encode() not in hook.raw


def test_identifiers_are_told_where_somebody_asks_for_them(world: World, hook: Hook) -> None:
    channel = channel_of(world, include_identifiers=True)
    happens(world, "pair-held", reasons=["the CT (series 3) is not parallel to the PET"])
    channel.tick(0.0)
    (told,) = hook.taken[0]["events"]
    assert told["identifiers"] == {
        "patient_ID": PATIENT,
        "study": STUDY,
        "study_description": DESCRIPTION,
        "source": "DOE>US@10.0.0.7",
        "reasons": ["the CT (series 3) is not parallel to the PET"],
    }


def test_only_what_was_asked_for_is_told(world: World, hook: Hook) -> None:
    channel = channel_of(world, on=("held",))
    for kind in ("pair-ready", "filed", "quarantined", "pair-held", "intake-refused"):
        happens(world, kind)
    channel.tick(0.0)
    assert [one["kind"] for one in hook.taken[0]["events"]] == ["pair-held"]


def test_what_happens_soon_after_goes_out_together(world: World, hook: Hook) -> None:
    channel = channel_of(world, batch_seconds=60)
    happens(world)
    channel.tick(0.0)
    happens(world)
    channel.tick(59.0)
    assert not hook.asked
    channel.tick(60.0)
    assert numbers(hook) == [1, 2]
    for _ in range(MOST_NOTICES):
        happens(world)
    assert channel.tick(61.0), "a full message does not wait"
    assert len(hook.taken) == 2


def test_the_same_event_has_the_same_id_in_every_process(world: World, hook: Hook) -> None:
    first, second = channel_of(world), channel_of(world)
    happens(world)
    first.tick(0.0)
    second.tick(0.0)  # as if the first was killed before it wrote down that it was answered
    assert len(hook.ids) == 2
    assert len(set(hook.ids)) == 1


@pytest.mark.both_databases
def test_what_was_before_the_first_start_is_not_told_and_what_came_while_it_was_down_is(
    world: World, hook: Hook
) -> None:
    happens(world)
    channel_of(world)
    happens(world)
    channel_of(world).tick(0.0)
    assert numbers(hook) == [2]


@pytest.mark.both_databases
def test_a_channel_that_is_turned_on_again_begins_anew(world: World, hook: Hook) -> None:
    channel_of(world)
    happens(world)
    assert marked(world)
    forget_marks(world.index, MARKS, keep=[])  # as `run_notifier` does with what is turned off
    assert not marked(world)
    channel_of(world).tick(0.0)
    assert not hook.asked


def test_a_redirect_is_not_followed(world: World, hook: Hook) -> None:
    hook.status, hook.headers = 307, {"Location": f"http://127.0.0.1:{hook.port}/elsewhere"}
    with pytest.raises(Undelivered, match="redirects are not followed"):
        Webhook(world.settings).send([a_notice()])
    assert hook.asked == 1


def test_an_answer_that_drips_without_end_is_cut_off(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        webhook = world.settings.notify.webhook.model_copy(
            update={
                "url": f"http://127.0.0.1:{listening.getsockname()[1]}/",
                "timeout_seconds": 0.5,
            }
        )

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    while True:
                        connection.sendall(b"H")
                        time.sleep(0.05)
                except OSError:
                    pass

        dripping = threading.Thread(target=drip)
        dripping.start()
        began = time.monotonic()
        with pytest.raises(Undelivered, match="the webhook cannot be reached"):
            Webhook(with_notify(world.settings, webhook=webhook)).send([a_notice()])
        assert time.monotonic() - began < 5
        dripping.join(10)


def test_a_secret_that_is_changed_counts_at_once_and_one_that_is_gone_is_named(
    world: World, hook: Hook, tmp_path: Path
) -> None:
    sender = Webhook(world.settings)
    sender.send([a_notice()])
    (tmp_path / "secret").unlink()
    with pytest.raises(Undelivered, match="secret_file cannot be read: No such file"):
        sender.send([a_notice()])
    assert hook.asked == 1


def test_a_killed_notifier_sends_at_least_once(world: World, hook: Hook, tmp_path: Path) -> None:
    command = petct("notify", "--root", world.layout.root)
    environment = environment_of(world)
    with running(command, tmp_path / "first", **environment) as first:
        first.await_output("notifying")
        wait_until(lambda: marked(world), 20)
        killed = threading.Event()

        def kill() -> None:
            if not killed.is_set():
                killed.set()
                os.kill(first.pid, signal.SIGKILL)

        hook.before_answer = kill
        happens(world)
        first.process.wait(20)
    happens(world)
    with running(command, tmp_path / "second", **environment) as second:
        wait_until(lambda: 2 in numbers(hook), 30, "the second event")
        assert second.end() == 0
    assert numbers(hook) == [1, 1, 2], "killed before it was answered: sent again"
    assert len(set(hook.ids)) == 2, "with the same id"
    for process in (first, second):
        assert SECRET not in process.stderr
        assert str(hook.port) not in process.stderr


def environment_of(world: World) -> dict[str, str]:
    webhook = world.settings.notify.webhook
    return {
        "PETCT_INGEST_NOTIFY__WEBHOOK__URL": str(webhook.url),
        "PETCT_INGEST_NOTIFY__WEBHOOK__SECRET_FILE": str(webhook.secret_file),
        "PETCT_INGEST_NOTIFY__BATCH_SECONDS": "0",
        "PETCT_INGEST_NOTIFY__ON": '["ready"]',
    }


def marked(world: World) -> bool:
    with world.index.read() as connection:
        keys = connection.exec_driver_sql("select key from meta").scalars().all()
    return f"{MARKS}webhook:after" in keys


def test_the_command_tries_each_channel_once(
    world: World, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment_of(world).items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, ["notify", "--root", str(world.layout.root), "--test"])
    assert (done.exit_code, done.output) == (0, "webhook: taken\n")
    assert hook.taken[0]["events"][0]["kind"] == "test"
    words = ["notify", "--root", str(world.layout.root), "--test", "--json"]
    assert json.loads(CliRunner().invoke(app, words).stdout) == {"taken": ["webhook"]}
    hook.status = 500
    done = CliRunner().invoke(app, ["notify", "--root", str(world.layout.root), "--test"])
    assert str(done.exception) == "the webhook answers 500"


def test_the_example_of_the_docs_tells_a_genuine_message_from_others() -> None:
    page = (PROJECT / "docs" / "notifications.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 - our own page
    is_genuine, body = names["is_genuine"], b'{"version": 1}'
    headers = signed_headers(SECRET, body, int(time.time()))
    assert is_genuine(SECRET.encode(), headers, body)
    assert not is_genuine(SECRET.encode(), headers, body + b" ")
    assert not is_genuine(b"another", headers, body)
    assert not is_genuine(SECRET.encode(), signed_headers(SECRET, body, 1_700_000_000), body)


def test_the_settings_of_the_docs_are_taken(tmp_path: Path) -> None:
    page = (PROJECT / "docs" / "notifications.md").read_text()
    (example,) = re.findall(r"^```toml\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "petct.toml").write_text(example)
    settings = load_settings(tmp_path / "petct.toml", root=tmp_path, environ={})
    assert [one.name for one in senders_of(settings)] == ["webhook", "email"]
    assert "notify" in {role.name for role in plan_roles(settings)}


# e-mail -------------------------------------------------------------------------------------------


def a_notice(number: int = 1, topic: Topic = Topic.READY, **more: Any) -> Notice:
    return Notice(f"id-{number}", AT, topic, "pair-ready", f"words {number}", study=number, **more)


def mail_settings(base: Settings, box: Mailbox, **more: Any) -> Settings:
    email = base.notify.email.model_copy(
        update={
            "host": "127.0.0.1",
            "port": box.port,
            "security": "none",
            "sender": "petct@example.org",
            "recipients": ("a@example.org", "b@example.org"),
            "timeout_seconds": 5,
            **more,
        }
    )
    return with_notify(base, email=email)


def test_one_message_tells_all_that_happened_over_tls_to_who_knows_the_password(
    settings: Settings, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    (tmp_path / "password").write_text("open sesame\n")
    with a_mailbox("open sesame", authority.sign("mail")) as box:
        told = mail_settings(
            settings, box, security="starttls", ca_file=authority.certificate, user="me",
            password_file=tmp_path / "password",
        )  # fmt: skip
        Email(told).send([a_notice(1), a_notice(2, Topic.HELD, link="https://p/studies/2")])
        (message,) = box.messages
        assert box.encrypted == [True]
        assert message["Subject"] == "petct-ingest: 1 held, 1 ready"
        assert message["To"] == "a@example.org, b@example.org"
        assert message["Auto-Submitted"] == "auto-generated"
        text = message.get_content().replace("\r\n", "\n")
        assert f"- {AT} study 2: words 2\n    https://p/studies/2\n" in text
        assert len(box.envelopes[0][1]) == 2

        (tmp_path / "password").write_text("sesame\n")
        with pytest.raises(Undelivered, match="SMTPAuthenticationError 535"):
            Email(told).send([a_notice()])
        untrusted = mail_settings(settings, box, security="starttls")
        with pytest.raises(Undelivered, match="does not take it"):
            Email(untrusted).send([a_notice()])
        assert len(box.messages) == 1


def test_a_thousand_files_set_aside_are_counted_and_the_same_message_has_the_same_id(
    settings: Settings,
) -> None:
    with a_mailbox() as box:
        sender = Email(mail_settings(settings, box))
        many = [a_notice(number, Topic.QUARANTINED) for number in range(1000)]
        for _ in range(2):
            sender.send(many)
        first, second = box.messages
        assert first["Subject"] == "petct-ingest: 1000 set aside"
        assert first["Message-ID"] == second["Message-ID"]
        assert len(first.get_content().splitlines()) <= 2 * MOST_LINES + 2


def test_a_header_cannot_add_anything_to_a_message(settings: Settings) -> None:
    with a_mailbox() as box:
        sender = Email(mail_settings(settings, box))
        sender.send([a_notice(1, identifiers={"study_description": DESCRIPTION + "\r\n.\r\nQUIT"})])
        (message,) = box.messages
        assert message["Bcc"] is None
        assert "Knee of Doe^Jane??Bcc: x@example.org" in message.get_content()


# disks --------------------------------------------------------------------------------------------


def room(mib: int) -> StoreRoom:
    return StoreRoom("archive", FreeSpace(mib << 20, 10**6))


def test_a_disk_is_told_low_once_and_free_once_it_has_room_again() -> None:
    reserve = Reserve(2000 << 20, 100, 1.25)
    assert turns([room(2001)], {}, reserve) == {}
    assert turns([room(1999)], {}, reserve)["archive"][0]
    assert turns([room(1999)], {"archive": True}, reserve) == {}
    assert turns([room(2400)], {"archive": True}, reserve) == {}, "at the mark it stays low"
    low, words = turns([room(2500)], {"archive": True}, reserve)["archive"]
    assert not low
    assert words == "the disk of the archive has room again: 2500 MiB are free"


def test_a_low_disk_is_told_though_the_index_takes_no_event(
    world: World, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = [room(1)]
    monkeypatch.setattr("daemon.notifying.channel.measure_disks", lambda _: measured)
    spool = world.settings.spool.model_copy(update={"minimum_free_mb": 1000})
    settings = world.settings.model_copy(update={"spool": spool})

    def kinds() -> list[str]:
        return [one["kind"] for message in hook.taken for one in message["events"]]

    hook.status = 503
    channel = Channel(world.index, settings, Webhook(settings))
    channel.tick(0.0)
    measured[:] = [room(9000)]
    hook.status = 200
    channel.tick(100.0)
    assert kinds() == ["disk-low", "disk-free"]
    measured[:] = [room(1)]
    channel.tick(200.0)
    another = Channel(world.index, settings, Webhook(settings))
    another.tick(300.0)
    assert kinds() == ["disk-low", "disk-free", "disk-low"], "another process knows what was told"


# decisions ----------------------------------------------------------------------------------------


def test_pauses_grow_to_ten_minutes_and_a_success_ends_them() -> None:
    pace = Pace(60)
    assert not pace.is_due(0, full=False)
    assert pace.is_due(60, full=False)
    pauses = [pace.failed(60) for _ in range(9)]
    assert pauses == [5, 10, 20, 40, 80, 160, 320, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS]
    assert not pace.is_due(659, full=True), "a full message waits after a failure as well"
    assert pace.is_due(660, full=False)
    pace.sent()
    assert pace.is_due(700, full=True)


SENTENCES = {
    HeldReason.NOT_ARRIVED: "PET 3 of 9: still not whole after the hard cap; send the rest",
    HeldReason.INCOMPLETE: "gap at z = 3 mm (series 3): send the missing slices, force the pair",
    HeldReason.TWO_PATIENTS: "the study arrived under two PatientIDs: correct one of them",
    HeldReason.FRAME: "the FrameOfReferenceUID of the CT (series 3) is another: PET and CT may not",
    HeldReason.COVERAGE: "the CT (series 3) covers 40% of the PET (3 mm short): send the rest",
    HeldReason.ORIENTATION: "the CT (series 3) is not parallel to the PET: choose another CT",
    HeldReason.SUV: "SUV is required and refused: no weight; record the missing weight",
    HeldReason.CHOICE: "the chosen CT …12345678 is not there, or is no CT: choose another",
    HeldReason.FILES_MISSING: "3 files of the index missing in the tree: send the series again",
    HeldReason.LINK: "a symbolic link stands in the tree where a file or folder belongs",
    HeldReason.MAKER_DIED: "5 processes died while making it (signal SIGKILL): has it memory?",
    HeldReason.REFUSED: "CT: mixed orientations: 3 of 9 slices are turned against the rest",
}


@pytest.mark.parametrize("reason", HeldReason)
def test_every_reason_to_hold_has_its_word(reason: HeldReason) -> None:
    assert held_reason(SENTENCES[reason]) is reason
    assert HELD_WORDS[reason]


def test_the_words_that_reasons_are_known_by_stand_in_the_code_that_writes_them() -> None:
    code = "".join(
        "".join(path.read_text().split()).replace('"f"', "").replace('""', "")
        for path in (PROJECT / "workers" / "pairing").glob("*.py")
        if path.name != "held.py"
    )
    for words in (
        "still not whole after the hard cap", "send the missing slices",
        "the study arrived under two PatientIDs", "the FrameOfReferenceUID of the CT",
        "is not parallel to the PET", ") covers ", "SUV is required and refused", "the chosen PET",
        "the chosen CT", "of the index missing in the tree", "a symbolic link stands in the tree",
        "processes died while making it",
    ):  # fmt: skip
        assert words.replace(" ", "") in code, words


@pytest.mark.parametrize(
    ("notify", "words"),
    [
        ({"webhook": {"url": "https://h/"}}, "secret_file"),
        ({"webhook": {"url": "ftp://h/", "secret_file": "s"}}, "http"),
        ({"webhook": {"url": "https://me:pw@h/", "secret_file": "s"}}, "without a user"),
        ({"email": {"host": "h"}}, "sender and recipients"),
        ({"email": {"sender": "a@b\nBcc: c@d"}}, "nothing around it"),
        ({"email": {"user": "me", "password_file": "p", "security": "none"}}, "in the clear"),
        ({"public_url": "https://h/?patient=1"}, "without user or query"),
        ({"on": ["everything"]}, "'ready', 'held'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    tmp_path: Path, notify: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadValue, match=words):
        load_settings(root=tmp_path, overrides={"notify": notify}, environ={})


def test_an_event_that_others_wrote_badly_tells_what_it_can(world: World, hook: Hook) -> None:
    channel = channel_of(world)
    with world.index.write() as connection:
        connection.execute(event.insert().values(at=AT, kind="pair-held", details="[1"))
        connection.execute(event.insert().values(at=AT, kind="pair-held", details=json.dumps([1])))
    channel.tick(0.0)
    assert [one["code"] for one in hook.taken[0]["events"]] == ["refused", "refused"]
