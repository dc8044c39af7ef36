"""Whatever comes, only our own errors go further: spoiled data sets, archives, words and jobs.

The properties are those of the fuzzing (fuzzing/targets.py); the inputs keep more of their form.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import hostile
import pytest
from filing_world import World, a_world
from fuzzing import seeds, targets
from fuzzing.targets import TARGETS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from workers import queues
from workers.filing.placing import place_instance
from workers.header.facts import InstanceFacts

CACHED = (targets.workplace, targets.kept_files, targets.installation, targets.deidentifier)


@pytest.fixture(autouse=True, scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PETCT_FUZZ_PLACE", str(tmp_path_factory.mktemp("hostile")))
        for cached in CACHED:
            cached.cache_clear()
        yield
        for cached in CACHED:
            cached.cache_clear()


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
    )


@examples(250)
@given(hostile.instances())
def test_a_spoiled_instance_is_read_examined_and_decoded_or_refused(content: bytes) -> None:
    for name in ("header", "examining", "pixels"):
        TARGETS[name](content)


@examples(40)
@given(hostile.instances())
def test_a_spoiled_instance_is_compared_or_a_conflict(content: bytes) -> None:
    TARGETS["comparing"](content)


@examples(120)
@given(hostile.instances())
def test_a_spoiled_instance_is_deidentified_or_refused(content: bytes) -> None:
    TARGETS["deidentifying"](content)


@examples(120)
@given(hostile.spoiled(st.sampled_from(sorted(seeds.archives().values()))))
def test_a_spoiled_archive_gives_members_and_findings(content: bytes) -> None:
    TARGETS["archives"](content)


@examples(150)
@given(hostile.descriptions)
def test_what_the_spool_says_is_read_or_told_as_damaged(content: bytes) -> None:
    TARGETS["spool"](content)


@examples(150)
@given(hostile.batches_of_jobs)
def test_a_job_names_entries_that_are_there_or_nothing(content: bytes) -> None:
    TARGETS["jobs"](content)


@examples(150)
@given(st.one_of(hostile.JSON, st.lists(hostile.JSON, min_size=4, max_size=4)))
def test_no_forged_job_is_ours(call: object) -> None:
    try:
        data = zlib.compress(json.dumps(call).encode())
    except ValueError:
        return
    assert not queues.is_ours(data)


@examples(150)
@given(hostile.spoiled(st.sampled_from(sorted(seeds.seeds_of("settings").values()))))
def test_a_spoiled_configuration_is_an_error_of_the_configuration(content: bytes) -> None:
    TARGETS["settings"](content)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with a_world(tmp_path_factory.mktemp("places") / "root") as one:
        yield one


NAMES = st.one_of(
    st.text(max_size=90),
    st.sampled_from(["..", ".", "/", "../..", "CON", "a" * 65, "A", "a", "%41", "\0", " ", ""]),
    st.text(alphabet="%./\\ \0aA", max_size=80),
)


@examples(60)
@given(patient=NAMES, accession=NAMES, prefix=st.sampled_from(["", "../", "x-"]))
def test_a_place_is_below_the_archive(
    world: World, patient: str, accession: str, prefix: str
) -> None:
    facts = InstanceFacts(
        sop_class_uid="1.2.3", sop_instance_uid="1.2.4", study_instance_uid="1.2.5",
        series_instance_uid="1.2.6", transfer_syntax_uid="1.2.840.10008.1.2.1",
        patient_id=patient.replace("\0", "\ufffd"),  # as the header's reader does
        accession_number=accession.replace("\0", "\ufffd"),
    )  # fmt: skip
    with world.index.write() as connection:
        found, _ = place_instance(connection, facts, prefix=prefix, source="s", at="t")
    inside = (world.layout.archive / found.folder).resolve()
    assert inside.is_relative_to(Path(world.layout.archive).resolve())
    assert len(inside.relative_to(Path(world.layout.archive).resolve()).parts) == 7
