"""A small lab: five hosts, each trouble once; `make lab` is the large one."""

from pathlib import Path

import pytest
from chaos_run import undisturbed_pairs
from conftest import missing
from lab_net import may_make_hosts
from lab_run import LabPlan, run_lab


@pytest.mark.timeout(400)
def test_several_hosts_that_are_cut_and_killed_file_and_pair_everything_once(
    tmp_path: Path,
) -> None:
    if words := may_make_hosts():
        missing(words)
    plan = LabPlan(studies=4, instances=0, quiet_seconds=5, cut_seconds=6)
    pairs = undisturbed_pairs(plan.studies, tmp_path / "undisturbed")
    folder = tmp_path / "lab"
    folder.mkdir()
    report = run_lab(plan, folder, pairs)
    assert report.clean, report
    assert report.pairs == 4
    assert set(report.by_host) == {"a", "b"}, "one host had nothing to do"
    assert "the link of A is back" in report.events
    assert any(words.startswith("D lost its power") for words in report.events)
