"""The order of effects, as the kernel saw it: durable first, then the answer; known, then removed.

Real processes run under strace. What counts is the order of what must be durable, not how many
calls it takes.
"""

import os
import re
import shutil
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import missing
from installation import Installation, copied, dcmtk
from running import children_of, petct, running, wait_until

from workers.phantom.study import write_many
from workers.spool.batches import BatchSource, BatchWriter

CALLS = (
    "openat,write,writev,pwrite64,pwritev,fsync,fdatasync,rename,renameat,renameat2,link,linkat,"
    "unlink,unlinkat,mkdir,mkdirat,sendto,sendmsg,ftruncate"
)
WRITES = r"p?writev?(64)?"
SYNCS = r"fsync|fdatasync"
RENAMES = r"rename(at2?)?"
LINKS = r"link(at)?"
UNLINKS = r"unlink(at)?"
SENDS = r"sendto|sendmsg|write|writev"
_BELOW = re.compile(r'(?:AT_FDCWD|\d+)<([^>]*)>, "([^"]*)"')
"""A path and the open folder that it counts from."""

pytestmark = [pytest.mark.slow]


@dataclass(frozen=True)
class Call:
    """One finished system call; `began` and `ended` count lines of the record."""

    name: str
    text: str
    began: int
    ended: int


class Trace:
    """What strace wrote down, its interrupted calls put together."""

    def __init__(self, path: Path) -> None:
        self.calls: list[Call] = []
        begun: dict[str, tuple[int, str]] = {}
        for number, line in enumerate(path.read_text(errors="replace").splitlines()):
            pid, _, text = line.partition(" ")
            text = text.strip()
            if text.endswith("<unfinished ...>"):
                begun[pid] = (number, text.removesuffix("<unfinished ...>"))
                continue
            began = number
            if text.startswith("<... ") and pid in begun:
                began, head = begun.pop(pid)
                text = head + text.partition("resumed>")[2]
            name = text.partition("(")[0]
            if re.fullmatch(r"\w+at2?", name):
                text = _BELOW.sub(lambda m: f'"{os.path.join(*m.groups())}"', text)
            # a call that failed had no effect
            if name.isidentifier() and not re.search(r"= -1 E[A-Z0-9]+ \(", text):
                self.calls.append(Call(name, text, began, number))
        self.calls.sort(key=lambda call: call.ended)

    def all(self, name: str, *words: str) -> list[Call]:
        """Every call of these names whose text holds all the words (regular expressions)."""
        return [
            call
            for call in self.calls
            if re.fullmatch(name, call.name) and all(re.search(word, call.text) for word in words)
        ]

    def first(self, name: str, *words: str) -> Call:
        found = self.all(name, *words)
        assert found, f"no {name} of {words} among:\n" + "\n".join(c.text for c in self.calls[-60:])
        return found[0]

    def last(self, name: str, *words: str) -> Call:
        self.first(name, *words)
        return self.all(name, *words)[-1]


def assert_in_order(*calls: Call) -> None:
    """Each call had returned before the next one began."""
    for earlier, later in pairwise(calls):
        assert earlier.ended < later.began, f"{earlier.text}\nnot before\n{later.text}"


@pytest.fixture
def one(tmp_path):
    return Installation(tmp_path)


@pytest.fixture
def instance(tmp_path):
    """One small instance: its SOPInstanceUID and file."""
    return next(iter(write_many(tmp_path / "one", 1).items()))


@pytest.fixture
def traced(one, tmp_path):
    """Run one role under strace, beside the roles that it needs; return its record when it ends."""
    if shutil.which("strace") is None:
        missing("no strace")
    record = tmp_path / "strace.txt"
    with ExitStack() as stack:

        def begin(*words: str, beside: str, ready: str):
            stack.enter_context(one.run("--roles", beside))
            command = ["strace", "-f", "--seccomp-bpf", "-yy", "-s", "64", "-e", f"trace={CALLS}"]
            role = [*command, "-o", str(record), *petct(*words, "--root", one.root)]
            process = stack.enter_context(running(role, tmp_path / "role"))
            process.await_output(ready)
            (tracee,) = children_of(process.pid)  # strace itself is deaf to SIGTERM
            stack.callback(kill, tracee)

            def end() -> Trace:
                os.kill(tracee, signal.SIGTERM)
                assert process.process.wait(30) == 0, process.stderr
                return Trace(record)

            return end

        yield begin


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def place(path: os.PathLike[str] | str) -> str:
    return re.escape(os.fspath(path))


def test_an_instance_is_durable_before_success_is_sent(one, tmp_path, traced):
    dcmtk("dcmsend")
    port = one.port
    files = list(write_many(tmp_path / "some", 4).values())  # from the third on files are prepared
    end = traced("receive", "--port", str(port), beside="valkey,sweep", ready="receiver-listens")
    with one.sending(files) as sender:
        assert sender.process.wait(30) == 0, sender.stderr
    trace = end()

    incoming, ready = place(one.layout.incoming), place(one.layout.ready)
    description = trace.first(SYNCS, rf"{incoming}/[^/]*\.batch/batch\.json>")
    begun = trace.first(RENAMES, rf'"{incoming}/[^"]*\.batch"', rf'"{ready}/[^/"]*"')
    known = trace.first(SYNCS, rf"<{ready}>")
    answers = trace.all(SENDS, r"<TCP", r', "\\4\\0')  # each P-DATA-TF is a response
    assert len(answers) == len(files)
    for number, answered in enumerate(answers, 1):
        published = trace.first(RENAMES, rf'"{incoming}/[^"]*"', rf'"{ready}/[^/"]*/0*{number}"')
        temporary = re.search(rf'"({incoming}/[^"]*)"', published.text)
        assert temporary
        written = trace.last(WRITES, rf"<{re.escape(temporary[1])}>")
        synced = trace.last(SYNCS, rf"<{re.escape(temporary[1])}>")
        batch = re.search(rf'"({ready}/[^/"]*)/0*{number}"', published.text)
        assert batch
        named = next(
            sync
            for sync in trace.all(SYNCS, rf"<{re.escape(batch[1])}>")
            if sync.began > published.ended
        )
        assert_in_order(description, begun, known, published)
        assert_in_order(written, synced, published, named, answered)
    assert len(trace.all(LINKS, r"/proc/self/fd/")) == 2


def test_an_entry_is_removed_after_tree_and_index_know_it(one, instance, traced):
    uid, file = instance
    end = traced("work", "filing", beside="valkey,sweep", ready="worker-started")
    with BatchWriter(one.layout, BatchSource("association", "A", "B", "127.0.0.1")) as batch:
        entry = batch.publish((file.read_bytes(),))
    wait_until(lambda: one.filed() and not entry.where(one.layout).exists(), 30, "a filed entry")
    trace = end()

    archive = place(one.layout.archive)
    linked = trace.first(LINKS, rf'"{archive}/[^"]*/{re.escape(uid)}\.dcm"')
    target = re.search(rf'"({archive}/[^"]*)/{re.escape(uid)}\.dcm"', linked.text)
    assert target
    folder = Path(target[1])
    on_the_way = [one.layout.archive / p for p in folder.relative_to(one.layout.archive).parents]
    durable = [trace.last(SYNCS, rf"<{place(path)}>") for path in (folder, *on_the_way)]
    removed = trace.first(UNLINKS, place(entry.where(one.layout)))
    log = place(one.layout.index) + "-wal"
    # what is committed between the tree and the removal: the instance and its arrival
    commits = [c for c in trace.all(SYNCS, rf"<{log}>") if c.began > durable[0].ended]
    assert commits, "no commit after the tree was durable"
    for sync in durable:
        assert_in_order(linked, sync, commits[-1])
    written = [c for c in trace.all(WRITES, rf"<{log}>") if c.began > durable[0].ended]
    assert_in_order(written[0], commits[0], removed)
    assert [c for c in commits if c.ended < removed.began], "removed before the commit"
    placed = [c for c in trace.all(SYNCS, rf"<{log}>") if c.ended < linked.began]
    assert placed, "study, series and folder are committed before the link"


def test_a_file_that_can_be_renamed_leaves_its_folder_as_a_durable_entry(one, instance, traced):
    end = traced("watch", beside="valkey,sweep", ready="watching")
    source = one.inbox / "drop" / "a.dcm"
    drop(instance[1], source)
    wait_until(lambda: not source.exists(), 30, "a claim")
    trace = end()

    ready = place(one.layout.ready)
    description = trace.first(SYNCS, r"\.batch/batch\.json>")
    known = trace.first(SYNCS, rf"<{ready}>")
    synced = trace.first(SYNCS, rf"<{place(source)}>")
    moved = trace.first(RENAMES, rf'"{place(source)}"', rf'"{ready}/[^"]*"')
    folder = re.search(rf'"({ready}/[^"]*)/a\.dcm"', moved.text)
    assert folder
    named = trace.first(SYNCS, rf"<{re.escape(folder[1])}>")
    assert_in_order(description, known, moved)
    assert_in_order(synced, moved, named)
    assert not trace.all(UNLINKS, place(source))


def test_a_file_that_must_be_copied_is_durable_in_the_spool_before_it_is_removed(
    one, instance, traced, elsewhere, tmp_path
):
    config = tmp_path / "watch.toml"
    config.write_text(f'root = "{one.root}"\n[[watch]]\npath = "{elsewhere}"\n')
    end = traced("watch", "--config", str(config), beside="valkey,sweep", ready="watching")
    source = elsewhere / "drop" / "a.dcm"
    drop(instance[1], source)
    wait_until(lambda: not any(p.is_file() for p in elsewhere.rglob("*")), 30, "a claim")
    trace = end()

    incoming, ready = place(one.layout.incoming), place(one.layout.ready)
    claimed = trace.first(RENAMES, rf'"{place(source)}"', r"\.petct-claim\.")
    published = trace.first(RENAMES, rf'"{incoming}/[^"]*"', rf'"{ready}/[^"]*/a\.dcm"')
    temporary = re.search(rf'"({incoming}/[^"]*)"', published.text)
    folder = re.search(rf'"({ready}/[^"]*)/a\.dcm"', published.text)
    assert temporary
    assert folder
    synced = trace.last(SYNCS, rf"<{re.escape(temporary[1])}>")
    named = trace.last(SYNCS, rf"<{re.escape(folder[1])}>")
    removed = trace.first(UNLINKS, r"\.petct-claim\.")
    assert_in_order(claimed, synced, published, named, removed)
    written = trace.all(WRITES, rf"<{re.escape(temporary[1])}>")
    assert all(call.ended < synced.began for call in written)


def drop(file: Path, target: Path) -> None:
    """Copy a folder with one file in, as `cp -r` does."""
    copied(file.parent, target.parent)
    (target.parent / file.name).rename(target)


def test_a_record_with_interrupted_calls_is_read_in_the_order_of_their_ends(tmp_path):
    record = tmp_path / "record"
    record.write_text(
        '1 write(3</a>, "x", 1) = 1\n'
        "1 fsync(3</a> <unfinished ...>\n"
        '2 rename("/a", "/b") = 0\n'
        "1 <... fsync resumed>) = 0\n"
        '1 linkat(AT_FDCWD</r>, "/a", 5</tree>, "b.dcm", 0) = 0\n'
        '2 rename("/c", "/d") = -1 ENOENT (No such file or directory)\n'
    )
    trace = Trace(record)
    assert [call.name for call in trace.calls] == ["write", "rename", "fsync", "linkat"]
    assert trace.first(LINKS, '"/a", "/tree/b.dcm"')
    assert_in_order(trace.first("write"), trace.first("fsync"))
    with pytest.raises(AssertionError, match="not before"):
        assert_in_order(trace.first("fsync"), trace.first("rename"))
