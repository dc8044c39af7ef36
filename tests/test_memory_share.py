"""The memory of a host is shared by the pairs that are made on it: estimated, and waited for."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import volumes
from filing_world import end_of_child, start_child
from running import wait_until
from volumes import Scan, turned

from config.settings import Settings
from workers.errors import PairingRefused, StoreUnavailable
from workers.header.facts import FrameFacts
from workers.pairing import share
from workers.pairing.build import PairOptions
from workers.pairing.need import MIB, _open_files, memory_need
from workers.pairing.share import Claim, may_begin, memory_budget, share_of_memory
from workers.pairing.volume import SeriesInput

PLAIN = PairOptions()
PET = Scan(modality="PT", size=(144, 144, 120), spacing=(4.0, 4.0), step=3.0, uid="1.2.3.2")
CT = Scan(size=(512, 512, 120), spacing=(1.0, 1.0), step=3.0)


def series(scan: Scan) -> SeriesInput:
    facts = tuple(volumes.facts(scan))
    return SeriesInput(scan.uid, (Path("x"),) * len(facts), facts, ("",) * len(facts))


def need(pet: Scan = PET, ct: Scan = CT, options: PairOptions = PLAIN, threads: int = 2) -> int:
    return memory_need(series(pet), series(ct), options, threads)


def test_what_is_streamed_costs_slices_and_arrays_and_what_is_held_its_volume() -> None:
    voxels, held = 144 * 144 * 120, 512 * 512 * 120
    arrays = voxels * (2 + 4)
    assert 270 * MIB + arrays < need() < 300 * MIB + arrays
    assert need(threads=8) - need(threads=2) == 6 * 8 * (2 * 512**2 + 6 * 144**2)
    assert need(options=PairOptions(ct_dtype="float32")) - need() == voxels * 2
    assert need(options=PairOptions(grid="ct")) > 270 * MIB + held * (2 + 4)
    assert need(ct=CT.with_(orientation=turned(5.0, axis=0))) > need() + 4 * held
    sagittal = CT.with_(orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    assert need(ct=sagittal) == need() + 8 * held


def test_files_of_many_frames_are_held_while_they_are_read() -> None:
    facts = volumes.facts(CT)[0]
    enhanced = replace(facts, number_of_frames=100, frames=(FrameFacts(),) * 100)
    one = 512 * 512 * 100 * 2
    for count, files in ((1, 3), (2, 4), (5, 4)):
        given = SeriesInput(CT.uid, (Path("x"),) * count, (enhanced,) * count, ("",) * count)
        assert _open_files(given) == files * one
    assert _open_files(series(CT)) == 0


def test_what_is_no_volume_is_refused_as_pairing_would() -> None:
    with pytest.raises(PairingRefused):
        need(pet=PET.with_(size=(144, 144, 1)))


@pytest.mark.parametrize(
    ("mine", "others", "begins"),
    [
        (60, [], True),
        (60, [("a", 40, True)], True),
        (61, [("a", 40, True)], False),
        (200, [], True),  # more than there is: alone
        (200, [("a", 1, True)], False),
        (10, [("a", 95, False)], False),  # who came first begins first
        (10, [("z", 95, False)], True),
        (10, [("a", 95, True), ("z", 20, False)], False),
    ],
)
def test_a_pair_begins_where_its_memory_is_there_and_nobody_waits_before_it(
    mine: int, others: list[tuple[str, int, bool]], begins: bool
) -> None:
    claims = [Claim(*one) for one in others]
    assert may_begin(Claim("m", mine, begun=False), claims, 100) is begins


def test_pairs_of_several_processes_wait_for_each_other_and_the_dead_claim_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    begun = [tmp_path / "0", tmp_path / "1"]

    def hold(number: int) -> None:
        with share_of_memory(settings.layout, 60, 100):
            begun[number].touch()
            signal.pause()

    first = start_child(lambda: hold(0))
    wait_until(begun[0].exists)
    second = start_child(lambda: hold(1))
    claims = settings.layout.run / "pairing"
    wait_until(lambda: len(list(claims.glob("*.claim"))) == 2)
    with (
        pytest.raises(StoreUnavailable, match=r"pairing\.memory_mb"),
        share_of_memory(settings.layout, 60, 100, patience_seconds=0.0),
    ):
        pytest.fail("there was no memory")
    assert not begun[1].exists()
    os.kill(first, signal.SIGKILL)
    assert end_of_child(first) == -signal.SIGKILL
    wait_until(begun[1].exists, what="the second pair")
    os.kill(second, signal.SIGKILL)
    assert end_of_child(second) == -signal.SIGKILL
    with share_of_memory(settings.layout, 100, 100):
        assert len(list(claims.glob("*.claim"))) == 1
    assert not list(claims.glob("*.claim"))


def test_a_pair_larger_than_all_there_is_begins_alone_and_says_so(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with share_of_memory(settings.layout, 3_000_000_000, 2_000_000_000):
        pass
    assert "pair-made-alone" in caplog.text


def test_the_budget_is_what_is_given_or_a_part_of_what_the_machine_and_its_group_have(
    tmp_path: Path,
) -> None:
    assert memory_budget(2000) == 2_000_000_000
    assert memory_budget(None, 10_000) == 7_000
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory_budget(None) <= machine * 0.7
    group = tmp_path / "fs" / "system.slice" / "worker"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("4000\n")
    told = tmp_path / "cgroup"
    told.write_text("1:name=systemd:/x\n0::/system.slice/worker\n")
    assert list(share._group_limits(told, tmp_path / "fs")) == [4000]
    assert list(share._group_limits(tmp_path / "none", tmp_path / "fs")) == []
