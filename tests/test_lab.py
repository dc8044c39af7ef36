"""A small lab: five hosts, each trouble once; `make lab` is the large one."""

import json
from pathlib import Path

import pytest
from chaos_delivery import study_pieces
from chaos_judge import digests_of_pair
from conftest import missing
from lab_net import may_make_hosts
from lab_run import LabPlan, run_lab
from typer.testing import CliRunner

from daemon.cli.app import app


def pairs_without_a_daemon(studies: int, folder: Path) -> dict[str, dict[str, str]]:
    """What `petct-ingest pair` makes of the studies: the digests of the arrays."""
    found = {}
    for number in range(studies):
        study_pieces(folder, number)
        out = folder / f"pair-{number}"
        done = CliRunner().invoke(app, ["pair", str(folder / f"study-{number}"), str(out)])
        assert done.exit_code == 0, done.output
        found[json.loads((out / "pair.json").read_bytes())["study"]] = digests_of_pair(out)
    return found


@pytest.mark.timeout(600)
def test_hosts_that_are_cut_and_killed_file_and_pair_everything_once(tmp_path: Path) -> None:
    if words := may_make_hosts():
        missing(words)
    plan = LabPlan(studies=4, instances=0, quiet_seconds=5, cut_seconds=6)
    pairs = pairs_without_a_daemon(plan.studies, tmp_path / "by-hand")
    folder = tmp_path / "lab"
    folder.mkdir()
    report = run_lab(plan, folder, pairs)
    assert report.clean, report
    assert report.pairs == plan.studies
    assert set(report.by_host) == {"a", "b"}, "one host had nothing to do"
    assert len(report.events) == 8, report.events
