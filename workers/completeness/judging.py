"""Judge series and studies after something changed, and write the verdicts into the index.

The decisions are pure and stand in roles.py, series.py and pairing/selection.py. Here the evidence
is read in one snapshot, judged outside any transaction, and written only if nothing changed
meanwhile: whoever changed it judges after us.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from config.logs import get_logger, short
from config.settings import Settings
from config.tables.work import PairingSettings
from workers import clock
from workers.completeness.evidence import (
    ReadFacts,
    SeriesRow,
    StudyEvidence,
    current_version,
    gather,
)
from workers.completeness.roles import RoleVerdict, judge_role
from workers.completeness.series import Completeness, judge_completeness
from workers.completeness.stacks import dot, normal_of
from workers.filing.rows import insert_event
from workers.header.facts import InstanceFacts
from workers.index.engine import MetadataIndex, asking, insert_new
from workers.index.seen import list_hosts
from workers.index.tables import instance, pair, series, study
from workers.pairing.selection import (
    Override,
    PairDecision,
    PairingPolicy,
    PairState,
    SeriesEvidence,
    decide_pair,
)

log = get_logger(__name__)

CAPPED = "over"
"""In `pair.begun_boot`: the hard cap has passed, for every host and after every boot."""

_ATTEMPTS = 5
_MARGIN_STEPS = 2.0


@dataclass(frozen=True, slots=True)
class PairWish:
    """A generation of a pair that is to be built."""

    pair_id: int
    generation: int


@dataclass(frozen=True, slots=True)
class _Judged:
    """Every verdict on one snapshot of a study."""

    evidence: StudyEvidence
    verdicts: dict[int, tuple[RoleVerdict, Completeness]]
    decision: PairDecision
    wanted: str
    overrides: Override | None


def judge_studies(
    index: MetadataIndex,
    settings: Settings,
    studies: Iterable[int],
    touched: Iterable[int] = (),
    read_facts: ReadFacts = InstanceFacts.from_json,
) -> list[PairWish]:
    """Judge studies and their touched series; return the pairs that are now to be built.

    A study whose PET waits for a CT that may lie in one of these is judged too. Who judges often
    hands in a `FactsMemory`.
    """
    wishes = []
    also = tuple(touched)
    mine = set(studies)
    if not mine:
        return []
    with index.read() as connection:
        mine |= _waiting_for(connection, mine)
    for study_id in sorted(mine):
        wish = _judge_study(index, settings, study_id, also, read_facts)
        if wish is not None:
            wishes.append(wish)
    return wishes


def policy_of(settings: PairingSettings) -> PairingPolicy:
    """Return what the settings say about choosing."""
    return PairingPolicy(
        ct_preference=settings.ct_preference,
        minimum_coverage=settings.minimum_coverage,
        strict_suv=settings.strict_suv,
        require_suv=settings.require_suv,
    )


def read_override(text: str | None) -> Override | None:
    """Read a person's override as the index keeps it."""
    return Override(**json.loads(text)) if text else None


def _judge_study(
    index: MetadataIndex,
    settings: Settings,
    study_id: int,
    also: tuple[int, ...],
    read_facts: ReadFacts,
) -> PairWish | None:
    for _ in range(_ATTEMPTS):
        with index.read() as connection:
            judged = _judge(connection, settings, study_id, also, read_facts)
        with index.write() as connection:
            if current_version(connection, study_id) == judged.evidence.version:
                return _write(connection, settings, judged)
    # busy without end: judge inside the write lock, once
    with index.write() as connection:
        judged = _judge(connection, settings, study_id, also, read_facts)
        return _write(connection, settings, judged)


def _waiting_for(connection: Connection, studies: set[int]) -> set[int]:
    """Return the patient's other studies whose PET shares a frame of reference with a CT here."""
    arrived, waiting = series.alias(), series.alias()
    here, there = study.alias(), study.alias()
    found = connection.execute(
        sa.select(pair.c.study_id)
        .join(there, there.c.id == pair.c.study_id)
        .join(waiting, waiting.c.study_id == there.c.id)
        .join(arrived, arrived.c.frame_of_reference_uid == waiting.c.frame_of_reference_uid)
        .join(here, here.c.id == arrived.c.study_id)
        .where(
            here.c.id.in_(studies),
            here.c["patient_ID"] == there.c["patient_ID"],
            there.c["patient_ID"] != "",
            arrived.c.modality == "CT",
            waiting.c.modality == "PT",
        )
        .distinct()
    )
    return set(found.scalars())


def _judge(
    connection: Connection,
    settings: Settings,
    study_id: int,
    also: tuple[int, ...],
    read_facts: ReadFacts,
) -> _Judged:
    evidence = gather(connection, study_id, also, read_facts)
    row = connection.execute(sa.select(pair).where(pair.c.study_id == study_id)).first()
    override = read_override(row.override) if row else None
    verdicts: dict[int, tuple[RoleVerdict, Completeness]] = {}
    candidates = []
    for one in (*evidence.series, *evidence.elsewhere):
        facts = evidence.facts.get(one.id)
        if not facts:
            continue
        role = judge_role(facts)
        completeness = judge_completeness(facts, role.role, quiet=one.quiet)
        verdicts[one.id] = (role, completeness)
        candidates.append(_candidate(one, study_id, facts, role, completeness))
    capped = row is not None and _is_capped(row, settings)
    decision = decide_pair(
        candidates,
        override,
        policy_of(settings.pairing),
        study_quiet=all(one.quiet for one in evidence.series),
        capped=capped,
        conflicting_patients=evidence.study.two_patients,
    )
    if capped and decision.state is PairState.HELD:
        decision = replace(decision, reasons=(*decision.reasons, *_missed_hosts(connection)))
    wanted = ""
    if decision.state is PairState.READY:
        wanted = _fingerprint(connection, evidence, decision, override, settings.pairing)
    return _Judged(evidence, verdicts, decision, wanted, override)


def _missed_hosts(connection: Connection) -> list[str]:
    """Name the hosts that are away though something waits there, which may belong to the study."""
    return [
        f"host {one.name!r} may have more of it ({one.state}): start it, or let"
        f" `petct-ingest hosts forget {one.name}` forget it"
        for one in list_hosts(asking(connection))
        if one.entries and not one.is_there
    ]


def _candidate(
    row: SeriesRow,
    study_id: int,
    facts: tuple[InstanceFacts, ...],
    role: RoleVerdict,
    completeness: Completeness,
) -> SeriesEvidence:
    return SeriesEvidence(
        series_uid=row.uid,
        study_uid=row.study_uid,
        instances=facts,
        role=role,
        completeness=completeness,
        quiet=row.quiet,
        same_study=row.study_id == study_id,
    )


def _is_capped(row: Any, settings: Settings) -> bool:
    if row.begun_boot == CAPPED:
        return True
    if not row.begun_boot or row.begun_boot != clock.boot_id():
        return False
    age = clock.monotonic() - float(row.begun_monotonic)
    return age >= settings.completeness.hard_cap_minutes * 60


def _fingerprint(
    connection: Connection,
    evidence: StudyEvidence,
    decision: PairDecision,
    override: Override | None,
    settings: PairingSettings,
) -> str:
    """Return a digest of all that decides what the arrays will be.

    CT slices beyond the PET's extent change nothing in the pair, and so nothing here: a slice that
    arrives late and lies outside the paired volume is only recorded.
    """
    rows = {one.uid: one for one in (*evidence.series, *evidence.elsewhere)}
    pet, ct = rows[decision.pet or ""], rows[decision.ct or ""]
    near = None
    if settings.grid != "ct":  # there every CT slice is in the arrays
        near = _near_the_pet(evidence.facts[pet.id], evidence.facts[ct.id])
    words: list[object] = [
        settings.grid, settings.ct_dtype, settings.nifti, settings.strict_suv,
        settings.require_suv, asdict(override) if override else None,
    ]  # fmt: skip
    for one, kept in ((pet, None), (ct, near)):
        found = connection.execute(
            sa.select(instance.c.instance_uid, instance.c.dataset_sha256)
            .where(instance.c.series_id == one.id)
            .order_by(instance.c.instance_uid)
        )
        words.append([list(item) for item in found if kept is None or item[0] in kept])
    return hashlib.sha256(json.dumps(words, default=str).encode()).hexdigest()


def _near_the_pet(pet: tuple[InstanceFacts, ...], ct: tuple[InstanceFacts, ...]) -> set[str]:
    """Return the CT instances within two slices of the PET's extent, or without a position."""
    placed = [(f.image_position_patient, f.image_orientation_patient) for f in pet]
    first = next((orientation for _, orientation in placed if orientation), None)
    if first is None:
        return {facts.sop_instance_uid for facts in ct}
    normal = normal_of(first)
    along = sorted(dot(normal, position) for position, _ in placed if position)
    if not along:
        return {facts.sop_instance_uid for facts in ct}
    step = (along[-1] - along[0]) / max(len(along) - 1, 1)
    thick = max((facts.slice_thickness or 0.0 for facts in ct), default=0.0)
    margin = _MARGIN_STEPS * max(step, thick, 1.0)
    low, high = along[0] - margin, along[-1] + margin
    return {
        facts.sop_instance_uid
        for facts in ct
        if facts.image_position_patient is None
        or low <= dot(normal, facts.image_position_patient) <= high
    }


def _write(connection: Connection, settings: Settings, judged: _Judged) -> PairWish | None:
    for one in judged.evidence.series:
        if one.id in judged.verdicts:
            role, completeness = judged.verdicts[one.id]
            _write_series(connection, one, role, completeness)
    return _write_pair(connection, settings, judged)


def _write_series(
    connection: Connection, row: SeriesRow, role: RoleVerdict, completeness: Completeness
) -> None:
    connection.execute(
        series.update()
        .where(series.c.id == row.id)
        .values(
            role=str(role.role),
            role_reasons=json.dumps(role.reasons),
            state=str(completeness.state),
            expected=completeness.expected,
            state_reasons=json.dumps(completeness.reasons),
        )
    )
    if row.state != completeness.state:
        insert_event(
            connection, f"series-{completeness.state}", clock.utc_now(), study_id=row.study_id,
            series_id=row.id, role=str(role.role), received=completeness.received,
            expected=completeness.expected, reasons=completeness.reasons,
        )  # fmt: skip
        log.info("series-judged", series=short(row.uid), role=role.role, state=completeness.state)


def _write_pair(connection: Connection, settings: Settings, judged: _Judged) -> PairWish | None:
    decision, study_id = judged.decision, judged.evidence.study.id
    has_pet = any(role.role.is_pet for role, _ in judged.verdicts.values())
    row = connection.execute(sa.select(pair).where(pair.c.study_id == study_id)).first()
    if row is None:
        if not has_pet and decision.state is not PairState.HELD:
            return None  # pair rows begin with a PET
        insert_new(
            connection, pair, study_id=study_id, state="pending",
            begun_boot=clock.boot_id(), begun_monotonic=clock.monotonic(),
        )  # fmt: skip
        row = connection.execute(sa.select(pair).where(pair.c.study_id == study_id)).one()
    state, generation = _next_state(row, judged)
    changes: dict[str, Any] = {"state": state, "generation": generation}
    if decision.state is not PairState.WAITING or generation == row.done_generation:
        # else: what is being made keeps the words that it was decided with
        changes["decision"] = json.dumps(_words_of(decision))
    if not (state == "held" and decision.state is PairState.READY):
        changes["reasons"] = json.dumps(decision.reasons)  # else: why its making was refused
    if decision.state is not PairState.WAITING:
        changes.update(pet=decision.pet, ct=decision.ct)
    if decision.state is PairState.READY:
        changes["wanted"] = judged.wanted
    if generation != row.generation:
        changes.update(
            decided_at=clock.utc_now(),
            needed_at=_needed_at(connection, decision),
        )
    connection.execute(pair.update().where(pair.c.id == row.id).values(changes))
    if state != row.state or generation != row.generation:
        insert_event(
            connection, f"pair-{state}", clock.utc_now(), study_id=study_id,
            generation=generation, pet=decision.pet, ct=decision.ct, reasons=decision.reasons,
        )  # fmt: skip
        log.info("pair-judged", study=short(judged.evidence.study.uid), state=state)
    if state == "pending" and generation > row.done_generation and settings.pairing.enabled:
        return PairWish(row.id, generation)
    return None


def _next_state(row: Any, judged: _Judged) -> tuple[str, int]:
    """Return the pair's next state and generation."""
    decision, generation = judged.decision, int(row.generation)
    if decision.state is PairState.HELD:
        return "held", generation
    if decision.state is PairState.READY:
        if judged.wanted != row.wanted:
            return "pending", generation + 1
        if row.failed_generation >= generation > row.done_generation:
            return "held", generation  # its making was refused; the reasons stand in the row
        return ("ready" if row.done_generation >= generation else "pending"), generation
    if row.done_generation >= generation > 0:
        return "ready", generation  # made already; what arrives now is not judged yet
    return ("no_pair" if decision.no_pair else "pending"), generation


def _words_of(decision: PairDecision) -> dict[str, Any]:
    words = asdict(decision)
    words["state"] = str(decision.state)
    return words


def _needed_at(connection: Connection, decision: PairDecision) -> str | None:
    """Return when the last instance of the two series was filed."""
    found = connection.execute(
        sa.select(sa.func.max(instance.c.filed_at))
        .join(series, series.c.id == instance.c.series_id)
        .where(series.c.series.in_([decision.pet, decision.ct]))
    )
    return found.scalar()
