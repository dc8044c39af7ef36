"""Killed at random, starved of queue and disk, sent to all the while: nothing is lost.

The short form of `make chaos` (docs/proof.md); the judge itself is judged first.
"""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import asdict

import pydicom
import pytest
import soak_run
from chaos_delivery import data_set_digest, study_pieces
from chaos_disk import best_kinds
from chaos_judge import Promise, digests_of_pair, judge
from chaos_plan import EVERYTHING, HORSE, ROLES, SUPERVISOR, Kind, Plan
from chaos_run import (
    Report,
    argument_parser,
    kills_by_process,
    main,
    run_chaos,
    table,
    undisturbed_pairs,
)
from conftest import PROJECT
from installation import Installation
from running import wait_until

STUDIES = 4

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return undisturbed_pairs(STUDIES, tmp_path_factory.mktemp("undisturbed"))


def test_a_seed_always_plans_the_same_and_ten_seeds_reach_every_process():
    assert Plan(7).events() == Plan(7).events() != Plan(8).events()
    events = [event for seed in range(10) for event in Plan(seed).events()]
    assert {event.kind for event in events} == set(Kind)
    assert {e.target for e in events if e.kind is Kind.KILL} == {
        *ROLES, HORSE, SUPERVISOR, EVERYTHING
    }  # fmt: skip
    assert Counter(event.kind for event in events)[Kind.KILL] == 10 * Plan(1).kills


@pytest.mark.parametrize(
    ("seed", "disk"), [(11, best_kinds()[0]), (12, "hook")], ids=["own-disk", "injected"]
)
def test_chaos_loses_doubles_and_spoils_nothing(seed, disk, pairs, tmp_path, capsys):
    plan = Plan(seed, 600, STUDIES, kills=7, pauses=1, flushes=1, fills=1, senders=3, disk=disk)
    report = run_chaos(plan, tmp_path, pairs)
    with capsys.disabled():
        print(f"\n{table([report])}\n{kills_by_process([report])}", end="")
    assert report.problems == []
    assert report.clean
    assert report.killed == plan.kills
    assert report.acknowledged + report.dropped > plan.instances


def test_seeds_that_stand_in_the_results_are_not_run_again(tmp_path, capsys):
    results = tmp_path / "results.jsonl"
    reports = [
        Report(3, "loop", 1, kills={"receiver": 2}, events={"kill": 2, "fill": 1}),
        Report(4, "hook", 0, lost=1),
    ]
    results.write_text("".join(json.dumps(asdict(report)) + "\n" for report in reports))
    assert main(["--seeds", "3-4", "--results", str(results)]) == 1, "one of them lost something"
    printed = capsys.readouterr().out
    assert table(reports) in printed
    assert "{'receiver': 2, '(fill)': 1}" in printed


def test_the_commands_of_the_page_are_targets_whose_options_are_known():
    page = (PROJECT / "docs" / "proof.md").read_text()
    commands = re.findall(r'^    make (\w+) ARGS="(.*)"$', page, re.M)
    parsers = {"chaos": argument_parser(), "soak": soak_run.argument_parser()}
    assert {name for name, _ in commands} == parsers.keys()
    for name, words in commands:
        parsers[name].parse_args(words.split())
        command = ["make", "-n", name, f"ARGS={words}"]
        recipe = subprocess.run(
            command, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=30
        )
        # below another make there are lines about folders around it
        called = f"tests/{name}_run.py {words}"
        assert any(line.endswith(called) for line in recipe.stdout.splitlines())


# --- the judge


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """One archive that is right, and what was promised for it."""
    folder = tmp_path_factory.mktemp("judged")
    one = Installation(folder)
    pieces = study_pieces(folder, 0)
    with one.run() as process:
        with one.sending([piece.path for piece in pieces]) as sender:
            assert sender.process.wait(60) == 0
        ready = "select study, folder from pair join study on study.id = study_id"
        ready += " where state = 'ready' and generation = done_generation"
        wait_until(lambda: one.ask(ready), 60, "a pair")
        pairs = {s: digests_of_pair(one.layout.archive / place) for s, place in one.ask(ready)}
        wait_until(lambda: not list(one.layout.ready.iterdir()), 60, "an empty spool")
        assert process.end() == 0
    sent = Counter(piece.uid for piece in pieces)
    digests = {piece.uid: data_set_digest(piece.path) for piece in pieces}
    return one.root, Promise(digests, sent, Counter(), Counter(), pairs)


def test_the_judge_finds_nothing_where_all_is_right(judged):
    root, promise = judged
    assert judge(root, [root / "inbox"], promise).clean


def spoil_lost(file, root):
    file.unlink()


def spoil_doubled(file, root):
    other = file.parent.with_name("00000")
    other.mkdir()
    shutil.copyfile(file, other / file.name)


def spoil_bytes(file, root):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def spoil_elements(file, root):
    dataset = pydicom.dcmread(file)
    dataset.SeriesDescription = "another"
    dataset.save_as(file)


def spoil_with_a_stranger(file, root):
    (file.parent / f"{file.name}.tmp").touch()


def spoil_the_spool(file, root):
    (root / "spool" / "incoming" / "left").touch()


def spoil_the_pair(file, root):
    path = next(root.glob("archive/*/*/Auto-Paired/pet.npy"))
    spoil_bytes(path, root)


def spoil_with_a_link(file, root):
    os.link(file, root / "another-name")


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (spoil_lost, "lost"),
        (spoil_doubled, "doubled"),
        (spoil_bytes, "corrupted"),
        (spoil_elements, "corrupted"),
        (spoil_with_a_stranger, "strange files"),
        (spoil_the_spool, "left over"),
        (spoil_the_pair, "arrays differ"),
        (spoil_with_a_link, "another name too"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_judge_finds_what_is_wrong(judged, spoil, names, tmp_path):
    kept, promise = judged
    root = shutil.copytree(kept, tmp_path / "root", ignore=shutil.ignore_patterns("*.sock"))
    spoil(next(root.glob("archive/**/*.dcm")), root)
    verdict = judge(root, [], promise)
    assert not verdict.clean
    if names in ("lost", "doubled", "corrupted"):
        assert len(getattr(verdict, names)) == 1
    else:
        assert any(names in words for words in verdict.drift)


def test_the_judge_misses_what_was_acknowledged_and_counts_what_was_not(judged):
    root, promise = judged
    uid = next(iter(promise.digests))
    more = Promise(
        promise.digests, promise.acknowledged + Counter({uid: 1}), Counter(), Counter(),
        promise.pairs,
    )  # fmt: skip
    assert judge(root, [], more).drift == [f"counted too seldom: {uid}"]
    less = Promise(
        promise.digests, promise.acknowledged - Counter({uid: 1}), Counter(), Counter(),
        promise.pairs,
    )  # fmt: skip
    assert [words.split(":")[0] for words in judge(root, [], less).drift] == [
        "instances that nobody sent", "counted too often"
    ]  # fmt: skip
