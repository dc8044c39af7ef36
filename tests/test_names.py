"""Names of the tree: safe single components, injective, and digits of UIDs."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.filing.names import (
    accession_name,
    encoded,
    patient_name,
    uid_digits,
    with_suffix,
)

SAFE = re.compile(r"[A-Za-z0-9%_-][A-Za-z0-9._%-]*")
DEVICES = ["con", "PRN", "aux", "NUL", "com0", "COM9", "lpt1", "CON.txt", "nul.tar.gz", "AUX."]
text = st.text(max_size=400)
tricky = st.one_of(
    text,
    st.text(alphabet="%./\\ \0aA0-_", max_size=80),
    st.sampled_from([*DEVICES, ".", "..", "...", "%2E", "%", "a.", ".a", "a" * 64, "a" * 65]),
)


@given(tricky)
def test_a_name_is_one_safe_component_of_at_most_64_characters(value: str) -> None:
    name = encoded(value)
    if not value:
        assert name == ""
        return
    assert SAFE.fullmatch(name)
    assert len(name) <= 64
    assert not name.endswith(".")
    stem = name.split(".")[0].lower()
    assert not re.fullmatch(r"con|prn|aux|nul|com[0-9]|lpt[0-9]", stem)
    assert not re.search(r"%(?![0-9A-F]{2})", name.rsplit("-", 1)[0]), "half an escape"


@given(tricky, tricky)
def test_different_values_get_different_names(one: str, other: str) -> None:
    if one != other:
        assert encoded(one) != encoded(other)


@given(st.text(alphabet="abcXYZ019_-", min_size=1, max_size=60))
def test_an_ordinary_name_stays_as_it_is(value: str) -> None:
    if value.lower() not in ("con", "prn", "aux", "nul") and len(value) > 4:
        assert encoded(value) == value


@given(tricky)
def test_the_other_name_of_a_twin_is_safe_too(value: str) -> None:
    named = patient_name(value, "1.2.3")
    other = with_suffix(named)
    assert SAFE.fullmatch(other)
    assert len(other) <= 64
    assert other != named.name


@given(tricky, st.sampled_from(["1.2.3", "1.2.4"]), st.sampled_from(["", "north-"]))
def test_values_decide_folders_and_empty_ones_the_study(value: str, uid: str, prefix: str) -> None:
    patient = patient_name(value, uid, prefix)
    if value.strip(" \0"):
        assert patient == patient_name(f"  {value} ", "9.9", prefix)
        assert patient.value.startswith(prefix)
    else:
        assert patient.name == "UNKNOWN-" + "".join(uid_digits(uid))
        assert patient != patient_name(value, uid + ".1", prefix)
    assert "\0" not in patient.value or "\0" in value  # PostgreSQL takes no NUL in a text


def test_an_absent_value_is_told_from_one_that_reads_like_its_name() -> None:
    absent = accession_name("", "1.2.3")
    spelled = accession_name(absent.name, "1.2.3")
    assert absent.name == spelled.name
    assert absent.value != spelled.value
    assert accession_name(absent.value, "1.2.3").value != absent.value


def test_composed_and_decomposed_letters_are_one_patient() -> None:
    assert patient_name("Mu\u0308ller", "1.2") == patient_name("M\u00fcller", "1.2")


@pytest.mark.parametrize("device", DEVICES)
def test_names_of_windows_devices_are_encoded(device: str) -> None:
    assert encoded(device)[0] == "%"


def test_digits_follow_the_design() -> None:
    uid = "1.2.840.113619.2.290"
    number = int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=8).digest(), "big") % 10**10
    assert "".join(uid_digits(uid)) == f"{number:010d}"
    assert uid_digits(uid, 1) != uid_digits(uid)
