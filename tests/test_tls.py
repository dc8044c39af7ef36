"""TLS of the receiver: DCMTK let in and kept out, new certificates, handshakes that never end."""

import contextlib
import logging
import os
import re
import shutil
import ssl
import subprocess
import time

import pytest
from certificates import Authority, encrypted
from conftest import PROJECT
from peers import ENVIRONMENT, RELEASE_RQ, all_that_comes, call, dcmtk, need, request_pdu
from pydicom import dcmread
from pynetdicom import AE
from running import petct, running, wait_until

from config.settings import load_settings
from config.tables.intake import TlsSettings
from daemon.errors import TlsUnusable
from daemon.receiver import lobby
from daemon.receiver.server import Receiver
from daemon.receiver.tls import LOOK_SECONDS, ServerTls
from workers.phantom.study import write_many
from workers.spool.batches import waiting_entries
from workers.spool.notes import take_notes

VERIFICATION = "1.2.840.10008.1.1"


@pytest.fixture(autouse=True)
def hear(caplog):
    caplog.set_level(logging.INFO, "daemon")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Our authority with certificates for `receiver`, `client` and `expired`."""
    authority = Authority(tmp_path_factory.mktemp("tls") / "ours")
    authority.sign("receiver")
    authority.sign("client")
    authority.sign("expired", days=-1)
    return authority


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Another authority that signed a `client` of the same name."""
    authority = Authority(tmp_path_factory.mktemp("tls") / "theirs")
    authority.sign("client")
    return authority


@pytest.fixture
def files(ours, tmp_path):
    """Certificate and key of the receiver, for one test to exchange."""
    for suffix in ("pem", "key"):
        shutil.copy(ours.folder / f"receiver.{suffix}", tmp_path / f"mine.{suffix}")
    return tmp_path / "mine.pem", tmp_path / "mine.key"


@pytest.fixture
def secure(settings, ours, files):
    """Settings of a receiver that asks for certificates of our authority; changed by keywords."""

    def make(acse_timeout_seconds=30, **changes):
        certificate, key = files
        given = {"certificate": certificate, "key": key, "client_ca": ours.certificate} | changes
        receiver = settings.receiver.model_copy(
            update={
                "tls": TlsSettings(**given),
                "acse_timeout_seconds": acse_timeout_seconds,
            }
        )
        return settings.model_copy(update={"receiver": receiver})

    return make


def reasons(caplog, event="tls-handshake-failed"):
    return [item.facts["reason"] for item in caplog.records if item.message == event]


def shown(authority, name="client"):
    return ["+tls", authority.folder / f"{name}.key", authority.folder / f"{name}.pem"]


def checking(authority):
    return ["+cf", authority.certificate]


def echo(port, *options):
    return dcmtk("echoscu", *options, "127.0.0.1", port)


def client_context(ours, *, certificate="client"):
    context = ssl.create_default_context(cafile=str(ours.certificate))
    if certificate:
        folder = ours.folder
        context.load_cert_chain(folder / f"{certificate}.pem", folder / f"{certificate}.key")
    return context


@contextlib.contextmanager
def secured(port, context):
    with (
        call(port) as connection,
        context.wrap_socket(connection, server_hostname="127.0.0.1") as peer,
    ):
        yield peer


def certificate_served(port, ours):
    with secured(port, client_context(ours)) as peer:
        return peer.getpeercert(binary_form=True)


def der(path):
    return ssl.PEM_cert_to_DER_cert(path.read_text())


# who is let in ------------------------------------------------------------------------------------


def test_what_storescu_sends_over_tls_is_in_the_spool_whole(secure, ours, tmp_path):
    sent = write_many(tmp_path / "files", 12)
    settings = secure()
    with Receiver(settings, lambda _: None) as one:
        done = dcmtk(
            *("storescu", "+sd", "+r", *shown(ours), *checking(ours)),
            *("127.0.0.1", one.port, tmp_path / "files"),
        )
        assert done.returncode == 0, done.stderr
    found = [dcmread(entry.where(settings.layout)) for entry in waiting_entries(settings.layout)]
    assert sorted(item.SOPInstanceUID for item in found) == sorted(sent)
    for item in found:
        assert item.PixelData == dcmread(sent[item.SOPInstanceUID]).PixelData


def test_an_association_over_tls_1_3_stores_large_and_small(secure, ours, tmp_path):
    """pynetdicom as the sender: its PDUs and its TLS records do not end together."""
    sent = write_many(tmp_path / "files", 4)
    settings = secure(minimum_version="1.3")
    with Receiver(settings, lambda _: None) as one:
        entity = AE(ae_title="SCANNER")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20
        first = dcmread(next(iter(sent.values())))
        entity.add_requested_context(first.SOPClassUID, first.file_meta.TransferSyntaxUID)
        entity.add_requested_context(VERIFICATION)
        association = entity.associate(
            "127.0.0.1", one.port, tls_args=(client_context(ours), "127.0.0.1"), max_pdu=5000
        )
        assert association.dul.socket.socket.version() == "TLSv1.3"
        for path in sent.values():
            assert association.send_c_store(dcmread(path)).Status == 0
            assert association.send_c_echo().Status == 0
        large = dcmread(path)
        large.SOPInstanceUID = large.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        large.add_new(0x00091001, "OB", bytes(3_000_000))
        assert association.send_c_store(large).Status == 0
        association.release()
    sizes = [
        os.path.getsize(entry.where(settings.layout)) for entry in waiting_entries(settings.layout)
    ]
    assert len(sizes) == 5
    assert max(sizes) > 3_000_000


@pytest.mark.parametrize("asked", ["nobody", "if shown"])
def test_without_a_certificate_a_client_may_come_where_none_is_required(
    secure, ours, theirs, asked
):
    changes = {"client_ca": None} if asked == "nobody" else {"require_client_certificate": False}
    with Receiver(secure(**changes), print) as one:
        done = echo(one.port, "--anonymous-tls", *checking(ours))
        assert done.returncode == 0, done.stderr
        # one that is shown is looked at, where there is something to look at it with
        wrong = echo(one.port, *shown(theirs), *checking(ours))
        assert (wrong.returncode == 0) == (asked == "nobody")


def test_a_client_that_does_not_know_our_authority_goes_away(secure, theirs, ours, caplog):
    with Receiver(secure(), print) as one:
        assert echo(one.port, *shown(ours), *checking(theirs)).returncode != 0
    assert reasons(caplog) == ["tlsv1 alert unknown ca"]


# who is not ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (lambda ours, _: ["+tla", *checking(ours)], "peer did not return a certificate"),
        (lambda ours, theirs: [*shown(theirs), *checking(ours)], "unable to get local issuer"),
        (lambda ours, _: [*shown(ours, "expired"), *checking(ours)], "certificate has expired"),
        (lambda ours, _: ["+pa", *shown(ours), *checking(ours)], "no shared cipher"),
        (lambda *_: [], "wrong version number"),
    ],
    ids=["anonymous", "another authority", "expired", "old ciphers", "without TLS"],
)
def test_who_is_not_to_come_is_told_so_at_once_and_noted(
    secure, ours, theirs, caplog, options, reason
):
    settings = secure()
    with Receiver(settings, print) as one:
        began = time.monotonic()
        assert echo(one.port, *options(ours, theirs)).returncode != 0
        assert time.monotonic() - began < 10  # far from acse_timeout_seconds
        assert echo(one.port, *shown(ours), *checking(ours)).returncode == 0
    (told,) = reasons(caplog)
    assert told.startswith(reason)
    (note,) = take_notes(settings.layout)
    assert (note.kind, note.source) == ("tls-handshake-failed", "127.0.0.1")
    assert note.details == {"reason": told}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
@pytest.mark.parametrize(
    ("minimum", "newest"),
    [("1.2", ssl.TLSVersion.TLSv1_1), ("1.3", ssl.TLSVersion.TLSv1_2)],
)
def test_an_older_version_is_refused(secure, ours, caplog, minimum, newest):
    context = client_context(ours)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = newest
    with (
        Receiver(secure(minimum_version=minimum), print) as one,
        pytest.raises(ssl.SSLError, match="alert protocol version"),
        secured(one.port, context),
    ):
        pass
    assert reasons(caplog) == ["unsupported protocol"]


def test_a_plain_client_that_waits_for_an_answer_is_let_go_in_time(secure, caplog):
    with Receiver(secure(acse_timeout_seconds=0.3), print) as one, call(one.port) as silent:
        assert all_that_comes(silent) == b""
    assert reasons(caplog, "connection-refused") == ["no TLS handshake in time"]


def test_a_hundred_slow_handshakes_do_not_keep_a_good_one_out(secure, ours, monkeypatch):
    monkeypatch.setattr(lobby, "MOST_WAITING", 80)
    hello = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        client_context(ours).wrap_bio(ssl.MemoryBIO(), hello, server_hostname="x").do_handshake()
    begin = hello.read()
    slow = []
    with Receiver(secure(), print) as one:
        try:
            for number in range(100):
                slow.append(call(one.port))
                slow[-1].sendall(begin[: number * 4])  # from nothing to a whole first message
            began = time.monotonic()
            done = echo(one.port, *shown(ours), *checking(ours))
            assert done.returncode == 0, done.stderr
            assert time.monotonic() - began < 5
            wait_until(lambda: not one._server.active_associations, 5)
        finally:
            for connection in slow:
                connection.close()


def test_a_rejection_goes_through_tls_too(secure, ours):
    settings = secure()
    receiver = settings.receiver.model_copy(update={"allow_calling_ae": ("SCANNER",)})
    with Receiver(settings.model_copy(update={"receiver": receiver}), print) as one:
        refused = echo(one.port, "-aet", "STRANGER", *shown(ours), *checking(ours))
        assert "Reason: Calling AE Title Not Recognized" in refused.stderr
        assert echo(one.port, "-aet", "SCANNER", *shown(ours), *checking(ours)).returncode == 0


def test_a_stop_ends_an_association_over_tls(secure, ours):
    one = Receiver(secure(), print)
    with secured(one.port, client_context(ours)) as peer:
        peer.sendall(request_pdu())
        assert read_tls_pdu(peer)[0] == 2
        began = time.monotonic()
        one.stop()
        assert time.monotonic() - began < 5
        assert read_tls_pdu(peer)[0] == 7


# new certificates ---------------------------------------------------------------------------------


def replace(files, certificate, key):
    """Put new files in the place of those that the receiver was given, as certbot would."""
    for source, target in ((certificate, files[0]), (key, files[1])):
        new = target.with_suffix(".new")
        shutil.copy(source, new)
        new.rename(target)


def test_a_new_certificate_is_served_to_the_next_while_the_old_association_goes_on(
    secure, ours, files, caplog
):
    old = der(files[0])
    with Receiver(secure(), print) as one, secured(one.port, client_context(ours)) as first:
        first.sendall(request_pdu())
        assert read_tls_pdu(first)[0] == 2
        replace(files, *ours.sign("receiver-2"))
        new = der(files[0])
        wait_until(lambda: certificate_served(one.port, ours) == new, 10)
        first.sendall(RELEASE_RQ)
        assert read_tls_pdu(first)[0] == 6
    assert old != new
    assert "tls-files-reloaded" in caplog.messages


def read_tls_pdu(peer):
    """Read one PDU; an SSL socket knows no MSG_WAITALL."""
    read = b""
    while len(read) < 6 or len(read) < 6 + int.from_bytes(read[2:6], "big"):
        data = peer.recv(4096)
        assert data, read
        read += data
    return read


def test_broken_files_keep_the_old_certificate_and_warn_once(ours, files, caplog, tmp_path):
    tls = ServerTls(TlsSettings(certificate=files[0], key=files[1]), tmp_path)
    now = 100.0
    first = tls.context(now)
    certificate, key = ours.sign("receiver-3")
    shutil.copy(certificate, files[0])  # and its key is still on the way
    assert tls.context(now + LOOK_SECONDS / 2) is first  # not looked at yet
    for _ in range(3):
        now += LOOK_SECONDS
        assert tls.context(now) is first
    assert reasons(caplog, "tls-files-broken") == ["key values mismatch"]
    files[1].unlink()
    assert tls.context(now + LOOK_SECONDS) is first
    assert reasons(caplog, "tls-files-broken")[1:] == ["No such file or directory"]
    shutil.copy(key, files[1])
    second = tls.context(now + 2 * LOOK_SECONDS)
    assert second is not first
    assert tls.context(now + 3 * LOOK_SECONDS) is second


def test_a_key_that_others_may_read_is_a_warning(files, caplog, tmp_path):
    settings = TlsSettings(certificate=files[0], key=files[1])
    files[1].chmod(0o640)
    ServerTls(settings, tmp_path)
    assert "tls-key-open-to-others" not in caplog.messages
    files[1].chmod(0o644)
    ServerTls(settings, tmp_path)
    assert "tls-key-open-to-others" in caplog.messages


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files: {"key": encrypted(files[1])}, "certificate or key"),
        (lambda files: {"certificate": files[1]}, "certificate or key"),
        (lambda files: {"certificate": "gone.pem"}, "No such file"),
        (lambda files: {"client_ca": files[1]}, "client_ca"),
        (lambda _files: {"client_ca": "/dev/null"}, "client_ca"),
    ],
    ids=["encrypted key", "key as certificate", "missing", "key as CA", "empty CA"],
)
def test_files_that_cannot_be_used_are_told_by_their_setting(files, tmp_path, change, words):
    given = {"certificate": files[0], "key": files[1]} | change(files)
    with pytest.raises(TlsUnusable, match=words):
        ServerTls(TlsSettings(**given), tmp_path)


def test_the_command_ends_with_one_line_where_the_certificate_is_missing(tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(
        'root = "root"\n[receiver]\nport = 0\n'
        '[receiver.tls]\ncertificate = "no.pem"\nkey = "no.key"\n'
    )
    for command in ("receive", "run"):
        with running(petct(command, "--config", config), tmp_path / command) as one:
            assert one.process.wait(20) == 2
            last = one.stderr.splitlines()[-1]
        assert last.startswith("petct-ingest: receiver.tls.certificate or key cannot be used: No ")


# the paper ----------------------------------------------------------------------------------------


def test_the_worked_example_of_the_paper_works(settings, tmp_path):
    paper = (PROJECT / "docs" / "security.md").read_text()
    make, send, *_ = re.findall(r"^```sh\n(.*?)^```$", paper, re.MULTILINE | re.DOTALL)
    lists, files, *_ = re.findall(r"^```toml\n(.*?)^```$", paper, re.MULTILINE | re.DOTALL)
    write_many(tmp_path / "files", 3)
    sh(make, tmp_path)
    config = tmp_path / "config.toml"
    config.write_text(
        lists.replace("10.20.0.0/16", "127.0.0.0/8")
        + files.replace("/etc/petct-ingest", str(tmp_path))
    )
    read = load_settings(config, root=settings.root, environ={}).receiver
    mine = settings.model_copy(update={"receiver": read.model_copy(update={"port": 0})})
    with Receiver(mine, lambda _: None) as one:
        need("storescu")
        sh(send.replace("11112", str(one.port)), tmp_path)
    assert len(list(waiting_entries(settings.layout))) == 3


def sh(commands, folder):
    done = subprocess.run(
        ["bash", "-ec", commands],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
