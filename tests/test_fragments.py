"""Fragments that lie in the buffer are taken at once, whole or in part."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import COMMAND, LAST, p_data, pdu, pdv, release

from daemon.receiver.fragments import MOST_FRAGMENTS, NO_FRAGMENTS, next_fragments
from workers import durable

CONTEXT = 1


def found(encoded, most_bytes=0, before=NO_FRAGMENTS):
    return next_fragments(memoryview(encoded), CONTEXT, most_bytes, before)


def value(fragments):
    return b"".join(fragments.pieces)


@given(st.binary(max_size=400), st.integers(1, 90), st.binary(max_size=60))
def test_a_data_set_comes_back_however_it_was_cut_and_what_follows_stays(data, size, behind):
    pieces = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    sent = b"".join(p_data(pdv(0, one)) for one in pieces[:-1]) + p_data(pdv(LAST, pieces[-1]))
    taken = found(sent + behind)
    assert (value(taken), taken.bytes_read) == (data, len(sent))
    assert (taken.missing, taken.is_last) == (0, True)


@given(st.binary(max_size=300), st.integers(1, 90), st.lists(st.integers(1, 120), max_size=20))
def test_a_data_set_comes_back_however_it_arrives(data, size, arrivals):
    pieces = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    sent = b"".join(p_data(pdv(0, one)) for one in pieces[:-1]) + p_data(pdv(LAST, pieces[-1]))
    taken, values, at, end = NO_FRAGMENTS, [], 0, 0
    for more in (*arrivals, len(sent)):
        end = min(end + more, len(sent))
        while at < end and not (taken.is_last and not taken.missing):
            taken = found(sent[at:end], before=taken)
            values.append(value(taken))
            at += taken.bytes_read
            if not taken.bytes_read:
                assert end - at < 12, "only heads wait until they are whole"
                break
    assert (b"".join(values), at) == (data, len(sent))
    assert (taken.missing, taken.is_last) == (0, True)


@given(st.integers(0, 3 * 42 + 6))
def test_what_is_missing_of_a_fragment_is_told(cut):
    sent = b"".join(p_data(pdv(0, bytes(30))) for _ in range(3)) + release()
    taken = found(sent[:cut])
    whole, begun = divmod(min(cut, 3 * 42), 42)
    begun = begun if begun >= 12 else 0  # a head that is not there whole is left
    assert taken.bytes_read == 42 * whole + begun
    assert taken.missing == (42 - begun if begun else 0)
    assert not taken.is_last


@pytest.mark.parametrize(
    "other",
    [
        release(),
        p_data(pdv(COMMAND, b"12")),
        p_data(pdv(0, b"12", context=3)),
        p_data(pdv(0, b"12"), pdv(LAST, b"34")),
        p_data(),
        pdu(0x04, struct.pack(">LBB", 1, CONTEXT, 0)),
        p_data(pdv(0, bytes(200))),
    ],
    ids=["no data", "command", "context", "two values", "no value", "no control", "too long"],
)
def test_what_looks_any_different_is_left_to_who_reads_pdu_by_pdu(other):
    taken = found(p_data(pdv(0, b"before")) + other + p_data(pdv(LAST)), most_bytes=100)
    assert (value(taken), taken.missing, taken.is_last) == (b"before", 0, False)


def test_no_more_are_taken_than_one_call_can_write():
    taken = found(p_data(pdv(0, b"1")) * (MOST_FRAGMENTS + 1))
    assert len(taken.pieces) == MOST_FRAGMENTS < os.sysconf("SC_IOV_MAX")


def test_pieces_of_which_the_disk_takes_a_part_are_written_whole(tmp_path, monkeypatch):
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda descriptor, pieces: real(descriptor, pieces[:2]))
    with (tmp_path / "file").open("wb", buffering=0) as file:
        assert durable.write_pieces(file.fileno(), (b"ab", b"", b"cd", b"ef")) == 6
    assert (tmp_path / "file").read_bytes() == b"abcdef"
