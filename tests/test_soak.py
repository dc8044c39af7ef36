"""Nothing grows with what was sent: the short form of `make soak` (docs/proof.md)."""

import pytest
from chaos_plan import ROLES
from soak_run import (
    GROWTH_MB,
    HANDLES_IN_USE,
    MORE_HANDLES,
    MOST_KEYS,
    Process,
    Sample,
    SoakReport,
    assess,
    run_soak,
    table,
)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_five_thousand_instances_leave_no_process_larger(tmp_path, capsys):
    report = run_soak(5000, tmp_path, every_seconds=0.5)
    with capsys.disabled():
        print(f"\n{table(report)}", end="")
    assert report.problems == []


def soaked(**last: float) -> SoakReport:
    """Assess even samples of processes that differ from the rest at the end alone."""
    samples = []
    for number in range(20):
        late = last if number >= 15 else {}
        process = Process(
            int(late.get("pid", 7)),
            100.0 + late.get("rss_mb", 0.0),
            10 + int(late.get("handles", 0)),
            5 + int(late.get("threads", 0)),
        )
        roles = dict.fromkeys((*ROLES, "supervisor"), process)
        samples.append(Sample(number, 1000 * number, roles, 20 + int(late.get("keys", 0))))
    report = SoakReport(20_000)
    assess(samples, report)
    return report


def test_a_filing_worker_may_hold_the_files_of_a_batch_and_no_more():
    assert "filing worker" not in " ".join(soaked(handles=100).problems)
    assert "filing worker" in " ".join(soaked(handles=HANDLES_IN_USE["filing worker"]).problems)


def test_what_stays_within_its_bounds_is_no_problem():
    report = soaked(rss_mb=GROWTH_MB, handles=MORE_HANDLES, threads=MORE_HANDLES)
    assert report.problems == []
    assert set(report.growth_mb.values()) == {GROWTH_MB}


@pytest.mark.parametrize(
    ("grown", "words"),
    [
        ({"rss_mb": GROWTH_MB + 1}, "grew by"),
        ({"handles": MORE_HANDLES + 1}, "file handles"),
        ({"threads": MORE_HANDLES + 1}, "threads"),
        ({"keys": MOST_KEYS}, "keys"),
        ({"pid": 8}, "did not live"),
    ],
)
def test_what_grows_is_found(grown, words):
    problems = soaked(**grown).problems
    assert problems
    assert all(words in problem for problem in problems)
