"""Who may associate: decided by a pure table, and shown with DCMTK and with bare sockets."""

import logging
import random
import socket
import time

import pytest
from conftest import missing
from hypothesis import example, given
from hypothesis import strategies as st
from peers import RELEASE_RQ, all_that_comes, call, dcmtk, item, read_pdu, request_pdu
from pynetdicom import AE
from pynetdicom.pdu import A_ASSOCIATE_RJ
from running import wait_until

from config.tables.intake import ReceiverSettings
from daemon.receiver import lobby, refusals
from daemon.receiver.access import (
    Asked,
    Counts,
    address_allowed,
    judge_request,
    plain_address,
    read_request,
    whom_to_send_away,
)
from daemon.receiver.lobby import MOST_REQUEST_BYTES
from daemon.receiver.refusals import Refusals
from daemon.receiver.server import Receiver
from workers.spool.notes import take_notes

VERIFICATION = "1.2.840.10008.1.1"
A_ABORT = bytes((7, 0, 0, 0, 0, 4, 0, 0, 0, 0))
ASKED = Asked("SCANNER", "PETCT_INGEST", "10.0.0.7")
RULES = ReceiverSettings(
    allow_calling_ae=("SCANNER", "PACS 1"),
    allow_called_ae=("PETCT_INGEST", "RESEARCH"),
    allow_addresses=("10.0.0.0/24", "fd00::/8"),
    maximum_associations=3,
    maximum_associations_per_peer=2,
)


def with_rules(settings, **rules):
    return settings.model_copy(update={"receiver": settings.receiver.model_copy(update=rules)})


# the table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "counts", "code"),
    [
        ({}, (0, 0), "0/0/0"),
        ({"calling_ae": "PACS 1", "called_ae": "RESEARCH", "address": "fd00::7"}, (0, 0), "0/0/0"),
        ({"address": "::ffff:10.0.0.7"}, (0, 0), "0/0/0"),
        ({"protocol_version": 0x8003}, (0, 0), "0/0/0"),
        ({"protocol_version": 2}, (0, 0), "1/2/2"),
        ({"application_context": "1.2.3"}, (0, 0), "1/1/2"),
        ({"application_context": ""}, (0, 0), "1/1/2"),
        ({"address": "10.0.1.7"}, (0, 0), "1/1/1"),
        ({"address": "::ffff:10.0.1.7"}, (0, 0), "1/1/1"),
        ({"called_ae": "petct_ingest"}, (0, 0), "1/1/7"),
        ({"called_ae": ""}, (0, 0), "1/1/7"),
        ({"calling_ae": "SCANNER2"}, (0, 0), "1/1/3"),
        ({"calling_ae": "SCAN\\NER"}, (0, 0), "1/1/3"),
        ({}, (2, 1), "0/0/0"),
        ({}, (3, 0), "2/3/2"),
        ({}, (2, 2), "2/3/2"),
        # who is not allowed does not learn how busy we are
        ({"calling_ae": "SCANNER2"}, (3, 2), "1/1/3"),
    ],
)
def test_each_rejection_has_the_result_source_and_reason_of_the_standard(asked, counts, code):
    asked = Asked(**{name: getattr(ASKED, name) for name in Asked.__slots__} | asked)
    assert judge_request(asked, RULES, Counts(*counts)).code == code


def test_pynetdicom_reads_our_rejections_as_they_are_meant():
    verdict = judge_request(ASKED, RULES, Counts(3, 0))
    read = A_ASSOCIATE_RJ()
    read.decode(verdict.pdu)
    assert (read.result, read.source, read.reason_diagnostic) == (2, 3, 2)


def test_without_lists_everybody_may_associate():
    asked = Asked("ANY", "OTHER", "192.0.2.1")
    assert judge_request(asked, ReceiverSettings(), Counts()).accepted


@given(
    st.builds(
        Asked,
        calling_ae=st.sampled_from(["SCANNER", "X", "", "a\nb", "é"]),
        called_ae=st.sampled_from(["PETCT_INGEST", "X"]),
        address=st.one_of(st.ip_addresses().map(str), st.text(max_size=20)),
        application_context=st.sampled_from(["1.2.840.10008.3.1.1.1", "1.2"]),
        protocol_version=st.integers(0, 0xFFFF),
    ),
    st.builds(Counts, st.integers(0, 5), st.integers(0, 5)),
)
@example(ASKED, Counts())
def test_who_is_accepted_broke_no_rule_and_who_is_not_broke_one(asked, counts):
    broken = (
        asked.protocol_version % 2 == 0,
        asked.application_context != "1.2.840.10008.3.1.1.1",
        not address_allowed(asked.address, RULES.allow_addresses),
        asked.called_ae != "PETCT_INGEST",
        asked.calling_ae != "SCANNER",
        counts.overall >= 3,
        counts.of_peer >= 2,
    )
    verdict = judge_request(asked, RULES, counts)
    assert verdict.accepted == (not any(broken))
    assert len(verdict.pdu) == 10


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_the_same_through_an_ipv6_socket(address):
    mapped = f"::ffff:{address}"
    assert plain_address(mapped) == plain_address(str(address)) == str(address)
    for network in ("0.0.0.0/1", "::ffff:0:0/97"):
        inside = int(address) < 1 << 31
        assert address_allowed(str(address), (network,)) is inside
        assert address_allowed(mapped, (network,)) is inside


def test_an_address_with_a_zone_is_allowed_by_its_network():
    assert address_allowed("fe80::1%eth0", ("fe80::/10",))
    assert not address_allowed("fe80::1%eth0", ("fd00::/8",))


@given(st.binary(max_size=300))
def test_any_bytes_can_be_judged(body):
    asked = read_request(b"\1\0" + len(body).to_bytes(4, "big") + body, "10.0.0.7")
    assert asked is None or judge_request(asked, RULES, Counts()).words


def test_a_request_is_read_with_its_padding_gone():
    asked = read_request(request_pdu(calling=b" SCANNER", application_context=b"1.2\0"), "::1")
    assert asked == Asked("SCANNER", "PETCT_INGEST", "::1", "1.2", 1)


def test_the_oldest_of_the_busiest_address_makes_room():
    waiting = [("a", 1.0), ("b", 3.0), ("b", 2.0), ("c", 0.0)]
    assert whom_to_send_away(waiting) == 2
    assert whom_to_send_away([("a", 2.0), ("b", 1.0)]) == 1


# real peers ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def hear(caplog):
    caplog.set_level(logging.INFO, "daemon")


def facts_of(caplog, event):
    return [item.facts for item in caplog.records if item.message == event]


def echo(port, *, calling="SCANNER", called="PETCT_INGEST"):
    return dcmtk("echoscu", "-aet", calling, "-aec", called, "127.0.0.1", port)


@pytest.mark.parametrize(
    ("rules", "good", "bad", "printed", "code"),
    [
        (
            {"allow_calling_ae": ("SCANNER", "PACS 1")},
            {"calling": "PACS 1"},
            {"calling": "STRANGER"},
            "Reason: Calling AE Title Not Recognized",
            "1/1/3",
        ),
        (
            {"allow_called_ae": ("PETCT_INGEST",)},
            {},
            {"called": "ANY-SCP"},
            "Reason: Called AE Title Not Recognized",
            "1/1/7",
        ),
    ],
)
def test_dcmtk_is_told_why_its_title_is_not_taken(
    settings, caplog, rules, good, bad, printed, code
):
    with Receiver(with_rules(settings, **rules), print) as one:
        assert echo(one.port, **good).returncode == 0
        refused = echo(one.port, **bad)
    assert refused.returncode != 0
    assert "Result: Rejected Permanent, Source: Service User" in refused.stderr
    assert printed in refused.stderr
    (rejected,) = facts_of(caplog, "association-rejected")
    assert rejected["code"] == code
    refused = {"calling": "SCANNER", "called": "PETCT_INGEST"} | bad
    assert rejected["source"] == f"{refused['calling']}>{refused['called']}@127.0.0.1"
    (note,) = take_notes(settings.layout)
    assert (note.kind, note.source) == ("association-rejected", rejected["source"])
    assert note.details == {"reason": rejected["reason"], "code": code}


def test_an_address_that_is_not_allowed_is_closed_before_a_word(settings, caplog):
    with Receiver(with_rules(settings, allow_addresses=("127.0.0.2", "10.0.0.0/8")), print) as one:
        refused = echo(one.port)
        assert refused.returncode != 0
        with call(one.port) as connection:
            assert all_that_comes(connection) == b""
        # from an address on the list
        with socket.socket() as allowed:
            allowed.bind(("127.0.0.2", 0))
            allowed.settimeout(20)
            allowed.connect(("127.0.0.1", one.port))
            allowed.sendall(request_pdu())
            assert read_pdu(allowed)[0] == 2
            allowed.sendall(RELEASE_RQ)
            assert read_pdu(allowed)[0] == 6
    told = facts_of(caplog, "connection-refused")
    assert told[0] == {"source": "127.0.0.1", "reason": "address-not-allowed"}
    # the second one is counted when the receiver stops
    assert told[1:] == [told[0] | {"count": 1}]


def test_an_ipv4_list_holds_on_a_socket_of_both_kinds(settings):
    rules = {"host": "::", "allow_addresses": ("127.0.0.0/8",)}
    try:
        receiver = Receiver(with_rules(settings, **rules), print)
    except OSError:
        missing("IPv6")
    with receiver as one:
        assert echo(one.port).returncode == 0
        with call(one.port, "::1") as connection:
            assert all_that_comes(connection) == b""


def associate(port, calling="SCANNER"):
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.network_timeout = entity.dimse_timeout = 20
    entity.add_requested_context(VERIFICATION)
    return entity.associate("127.0.0.1", port)


def test_a_peer_has_its_own_limit_and_it_frees_itself(settings, caplog):
    with Receiver(with_rules(settings, maximum_associations_per_peer=2), print) as one:
        first, second = associate(one.port), associate(one.port)
        assert first.is_established
        assert second.is_established
        refused = echo(one.port)
        assert "Result: Rejected Transient" in refused.stderr
        assert "Reason: Local Limit Exceeded" in refused.stderr
        # another address is not concerned
        with socket.socket() as other:
            other.bind(("127.0.0.2", 0))
            other.settimeout(20)
            other.connect(("127.0.0.1", one.port))
            other.sendall(request_pdu())
            assert read_pdu(other)[0] == 2
            other.sendall(RELEASE_RQ)
            read_pdu(other)
        first.release()
        wait_until(lambda: echo(one.port).returncode == 0, 10)
        second.release()
    assert facts_of(caplog, "association-rejected")[0]["reason"] == "local-limit-exceeded-by-peer"


@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (request_pdu(version=2), bytes((3, 0, 0, 0, 0, 4, 0, 1, 2, 2))),
        (request_pdu(application_context=b"1.2.3"), bytes((3, 0, 0, 0, 0, 4, 0, 1, 1, 2))),
        (request_pdu(application_context=b""), bytes((3, 0, 0, 0, 0, 4, 0, 1, 1, 2))),
        (request_pdu(calling=b""), bytes((3, 0, 0, 0, 0, 4, 0, 1, 1, 3))),
        (request_pdu(calling=b"\xff\xfe"), bytes((3, 0, 0, 0, 0, 4, 0, 1, 1, 3))),
        (b"\1\0\0\0\0\4\0\1\0\0", A_ABORT),  # too short for its fixed fields
        (b"\1\0\xff\xff\xff\xff", A_ABORT),  # longer than any
        (b"GET / HTTP/1.1\r\n\r\n", A_ABORT),
        (b"\x16\3\1\2\0\1\0\1\xfc\3\3", A_ABORT),  # TLS on a port without
        (RELEASE_RQ, A_ABORT),
        (A_ABORT, b""),
        (request_pdu(contexts=item(0x20, b"\0\0\0\0")), A_ABORT),  # contexts have odd numbers
        (request_pdu(contexts=item(0x20, b"\1\0\0\0" + b"\x30\0\xff\xff")), A_ABORT),
    ],
)
def test_a_request_that_is_none_gets_the_standards_answer(settings, request_bytes, answer):
    with Receiver(settings, print) as one:
        with call(one.port) as connection:
            connection.sendall(request_bytes)
            assert all_that_comes(connection) == answer
        wait_until(lambda: not one._server.active_associations and not len(one._server.lobby), 5)


def test_a_damaged_request_is_answered_whatever_is_in_it(settings):
    """pynetdicom's own thread would die of some of these, and the peer wait for half a minute."""
    chance = random.Random(4)
    answers = set()
    with Receiver(settings, print) as one:
        for _ in range(100):
            damaged = bytearray(request_pdu())
            for _ in range(chance.choice((1, 1, 2, 4))):
                where = chance.randrange(74, len(damaged))
                damaged[where] = chance.choice((0, 1, 0x20, 0x40, 0x50, 0xFF))
            with call(one.port, seconds=10) as connection:
                connection.sendall(damaged)
                answer = read_pdu(connection)[0]
                if answer == 2:
                    connection.sendall(RELEASE_RQ)
                    assert read_pdu(connection)[0] == 6
            answers.add(answer)
        wait_until(lambda: not one._server.active_associations, 5)
    assert answers == {2, 3, 7}


def test_a_request_that_comes_byte_by_byte_is_taken(settings):
    with Receiver(settings, print) as one, call(one.port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request_pdu(version=0x0101):
            connection.sendall(bytes((byte,)))
        assert read_pdu(connection)[0] == 2
        connection.sendall(RELEASE_RQ)
        assert read_pdu(connection)[0] == 6


def test_whoever_trickles_is_let_go_when_the_time_is_over(settings, caplog):
    with Receiver(with_rules(settings, acse_timeout_seconds=0.5), print) as one:
        began = time.monotonic()
        with call(one.port) as connection:
            for byte in request_pdu():
                try:
                    connection.sendall(bytes((byte,)))
                except OSError:
                    break
                time.sleep(0.02)
            assert all_that_comes(connection) == b""
        assert 0.4 < time.monotonic() - began < 4
    assert facts_of(caplog, "connection-refused")[0]["reason"] == "no association request in time"


def test_hundreds_who_say_nothing_keep_nobody_out_and_cost_no_thread(settings, monkeypatch):
    monkeypatch.setattr(lobby, "MOST_WAITING", 100)
    silent = []
    with Receiver(with_rules(settings, maximum_associations=2), print) as one:
        try:
            silent.extend(call(one.port) for _ in range(250))
            assert echo(one.port).returncode == 0
            wait_until(lambda: not one._server.active_associations, 5)
            assert len(one._server.lobby) <= 100
            # the youngest still wait, and may ask
            silent[-1].sendall(request_pdu())
            assert read_pdu(silent[-1])[0] == 2
            silent[-1].sendall(RELEASE_RQ)
            read_pdu(silent[-1])
        finally:
            for connection in silent:
                connection.close()
        wait_until(lambda: not len(one._server.lobby), 5)


def test_a_request_that_is_slow_to_read_holds_up_nobody_else(settings):
    """One full of items, as large as is taken, beside one of an ordinary sender."""
    context = item(0x20, b"\1\0\0\0" + item(0x30, b"1.2") + item(0x40, b"1") * 6000)
    slow = request_pdu(contexts=context * 4)
    assert len(slow) < MOST_REQUEST_BYTES
    with Receiver(settings, print) as one:
        with call(one.port) as hostile:
            hostile.sendall(slow)
            assert echo(one.port).returncode == 0
        wait_until(lambda: not one._server.active_associations, 10)


# what is told -------------------------------------------------------------------------------------


def test_a_flood_is_told_in_two_lines(caplog):
    notes = []
    told = Refusals(lambda *words, **facts: notes.append((words, facts)))
    for number in range(1000):
        told.tell("association-rejected", "10.0.0.7", number / 100, why="w", source=f"{number}>U")
    told.tidy(59.9)
    assert len(notes) == 1
    told.tidy(60.0)
    assert notes == [
        (("association-rejected", "0>U"), {"reason": "w"}),
        (("association-rejected", "999>U"), {"reason": "w", "count": 999}),
    ]
    told.tidy(200.0)
    assert len(notes) == 2
    assert len(facts_of(caplog, "association-rejected")) == 2


def test_a_flood_from_everywhere_is_bounded_too():
    notes = []
    told = Refusals(lambda *words, **facts: notes.append(facts.get("count", 1)))
    for number in range(10_000):
        told.tell("connection-refused", f"10.0.{number // 250}.{number % 250}", 0.0, why="w")
    told.tidy(60.0)
    assert len(notes) == refusals.MOST_KINDS + 2
    assert sum(notes) == 10_000
