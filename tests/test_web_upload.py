"""What is uploaded on the web page: taken whole or not at all, and never lost once it was taken."""

import contextlib
import io
import os
import socket
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filing_world import World, a_world, small_instances
from running import wait_until
from web_serving import Served, Visitor, served

from daemon.web import taking, uploads
from daemon.web.services import MOST_UPLOADS
from workers.filing.expanding import expand_entry, is_archive
from workers.spool.batches import entries_of, read_source
from workers.spool.notes import take_notes
from workers.spool.uploads import add_entries, begin_list, read_list

JSON = {"Accept": "application/json"}
FIELD = b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n'


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path / "root", spool={"minimum_free_mb": 1, "minimum_free_inodes": 1}) as one:
        yield one


@pytest.fixture
def images(tmp_path: Path) -> list[bytes]:
    return small_instances(tmp_path / "images", 4)


@pytest.fixture
def page(world: World) -> Iterator[Served]:
    with served(world.settings) as one:
        yield one


def send(visitor: Visitor, files: dict[str, bytes], **headers: str):
    """Upload files (name: bytes) as the script of the page does."""
    token = visitor.token("/upload")
    parts = [("file", (name, content)) for name, content in files.items()]
    own = {"Origin": visitor.origin, "X-CSRF-Token": token} | JSON | headers
    return visitor.post("/upload", files=parts, headers=own)


def waiting(world: World) -> dict[str, bytes]:
    """What lies in the spool: path inside its batch, and bytes."""
    return {entry.path: entry.where(world.layout).read_bytes() for entry in world.waiting()}


def left_over(world: World) -> list[str]:
    return os.listdir(world.layout.incoming)


def test_files_and_folders_are_received_and_their_page_tells_what_became_of_them(
    world, page, images
):
    visitor = page.client()
    files = {"John Doe/CT/1.dcm": images[0], "John Doe/CT/2.dcm": images[1], "no": b"no DICOM"}
    answer = send(visitor, files).json()
    assert (answer["files"], answer["bytes"]) == (3, sum(map(len, files.values())))
    assert waiting(world) == files
    assert "Doe" not in answer["page"]
    assert visitor.get(answer["page"], headers=JSON).json()["waiting"] == 3
    world.file_all()
    assert visitor.get(answer["page"], headers=JSON).json() == {
        "waiting": 0, "outcomes": {"filed": 2, "quarantined": 1}, "set_aside": 1,
    }  # fmt: skip
    shown = visitor.get(answer["page"]).text
    assert "All of it is dealt with" in shown
    assert "no: not-dicom" in shown
    assert send(visitor, {"again.dcm": images[0]}).json()["files"] == 1
    world.file_all()
    world.check()
    assert world.outcomes() == {"filed": 2, "quarantined": 1, "duplicate": 1}


def test_the_form_works_without_a_script(world, page, images):
    visitor = page.client()
    fields = {"csrf": visitor.token("/upload")}
    parts = [("file", ("a.dcm", images[0])), ("file", ("", b""))]  # no folder was chosen
    answer = visitor.post("/upload", data=fields, files=parts, headers={"Origin": visitor.origin})
    assert answer.status_code == 303
    shown = visitor.get(answer.headers["location"]).text
    assert "1 still wait" in shown
    assert waiting(world) == {"a.dcm": images[0]}
    batch = answer.headers["location"].rpartition("/")[2]
    source = read_source(world.layout, batch)
    assert (source.kind, source.folder) == ("folder", str(world.layout.root / "upload"))


def test_what_is_received_is_synced_before_it_is_said(world, page, images, monkeypatch):
    synced, fsync = set(), os.fsync

    def note(descriptor: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}").partition(" ")[0])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    answer = send(page.client(), {"sub/a.dcm": images[0]}).json()
    batch = world.layout.ready / answer["batch"]
    assert {str(batch), str(batch / "sub")} <= synced
    assert str(world.layout.incoming / f"{answer['batch']}.upload") in synced


def test_an_archive_is_expanded_and_its_members_count_on_the_page_of_the_upload(
    world, page, images
):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number, content in enumerate(images):
            archive.writestr(f"study/{number}.dcm", content)
    visitor = page.client()
    answer = send(visitor, {"study.zip": packed.getvalue()}).json()
    (entry,) = world.waiting()
    assert is_archive(entry, entry.where(world.layout))
    expand_entry(
        world.index,
        world.settings,
        entry,
        offer=lambda member: add_entries(world.layout, entry.batch, (member,)),
    )
    world.file_all()
    told = visitor.get(answer["page"], headers=JSON).json()
    assert told == {"waiting": 0, "outcomes": {"expanded": 1, "filed": 4}, "set_aside": 0}


def test_a_tar_made_of_links_is_no_danger(world, page):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    send(page.client(), {"links.tar": packed.getvalue()})
    (entry,) = world.waiting()
    expand_entry(world.index, world.settings, entry)
    assert not world.waiting()


HOSTILE_NAMES = (
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "a/../../b",
    "batch.json",
    "_/batch.json",
    "C:\\fakepath\\a.dcm",
    "..\\..\\a.dcm",
    "n" * 300,
    "d/" * 40 + "a",
    "Müller^Ä.dcm",
    'quote".dcm',
    "line\nfeed",
    b"\xff\xfe.dcm".decode("latin-1"),
)


def test_a_name_leads_nowhere_else(world, page, tmp_path):
    images = small_instances(tmp_path / "more", len(HOSTILE_NAMES))
    answer = send(page.client(), dict(zip(HOSTILE_NAMES, images, strict=True))).json()
    assert answer["files"] == len(HOSTILE_NAMES)
    batch = world.layout.ready / answer["batch"]
    for entry in world.waiting():
        assert batch in entry.where(world.layout).resolve().parents
    assert sorted(waiting(world).values()) == sorted(images)
    assert read_source(world.layout, answer["batch"]).kind == "folder"
    world.file_all()
    assert world.outcomes() == {"filed": len(HOSTILE_NAMES)}


def test_files_of_one_name_are_all_kept(world, page, images):
    visitor = page.client()
    token = visitor.token("/upload")
    parts = [("file", ("a", one)) for one in images[:2]] + [("file", ("a/b", images[2]))]
    headers = {"Origin": visitor.origin, "X-CSRF-Token": token} | JSON
    assert visitor.post("/upload", files=parts, headers=headers).json()["files"] == 3
    assert sorted(waiting(world).values()) == sorted(images[:3])


# what is not taken --------------------------------------------------------------------------------


def test_without_the_token_no_file_is_taken(world, page, images):
    visitor = page.client()
    token, own = visitor.token("/upload"), {"Origin": visitor.origin}
    part = [("file", ("a.dcm", images[0]))]
    refused = [
        visitor.post("/upload", files=part, headers=own),
        visitor.post("/upload", data={"csrf": "0" * 64}, files=part, headers=own),
        visitor.post("/upload", data={"other": token}, files=part, headers=own),
        visitor.post("/upload", files=[*part, ("csrf", (None, token))], headers=own),  # too late
        visitor.post("/upload", data={"csrf": token}, files=part,
                     headers={"Origin": "http://evil.example"}),
        visitor.post("/upload", files=part, headers=own | {"X-CSRF-Token": "0" * 64}),
        page.client().post("/upload", data={"csrf": token}, files=part, headers=own),
    ]  # fmt: skip
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    assert not world.waiting()
    assert not left_over(world)


def test_too_much_is_refused_and_what_came_whole_before_is_told(world, images, tmp_path):
    web = world.settings.web.model_copy(update={"maximum_upload_mb": 1})
    with served(world.settings.model_copy(update={"web": web})) as page:
        answer = send(page.client(), {"a.dcm": images[0], "b.dcm": bytes(2 << 20)})
    assert answer.status_code == 413
    assert "maximum_upload_mb" in answer.json()["error"]
    assert answer.json()["files"] == 1
    assert waiting(world) == {"a.dcm": images[0]}
    assert not left_over(world)


def test_what_says_itself_that_it_is_too_large_is_refused_before_it_comes(world, page, monkeypatch):
    monkeypatch.setattr(uploads, "_LINGER_SECONDS", 0.1)
    visitor = page.client()
    token = visitor.token("/upload")
    size = (world.settings.web.maximum_upload_mb << 20) * 2
    status, body = converse(page, visitor, token, b"--x\r\n", size)
    assert status == 413
    assert b"maximum_upload_mb" in body


def test_without_room_nothing_is_taken_and_the_answer_says_so(tmp_path, images):
    with (
        a_world(tmp_path / "root", spool={"minimum_free_mb": 1 << 40}) as world,
        served(world.settings) as page,
    ):
        answer = send(page.client(), {"a.dcm": images[0]})
        assert answer.status_code == 507
        assert "kept in reserve" in answer.json()["error"]
        assert not world.waiting()
        kinds = wait_until(lambda: [note.kind for note in take_notes(world.layout)], 10, "a note")
        assert kinds == ["intake-refused"]


def test_a_full_disk_leaves_nothing_half(world, page, images, monkeypatch):
    def full(descriptor: int, data: object) -> int:
        raise OSError(28, "No space left on device", "/secret/path")

    monkeypatch.setattr(taking.durable, "write_whole", full)
    answer = send(page.client(), {"a.dcm": images[0]})
    assert answer.status_code == 507
    assert "No space left on device" in answer.json()["error"]
    assert "secret" not in answer.text
    monkeypatch.undo()
    assert not world.waiting()
    assert not left_over(world)


def test_a_connection_that_breaks_leaves_whole_files_alone(world, page, images, monkeypatch):
    monkeypatch.setattr(uploads, "PIECE_BYTES", 100)
    visitor = page.client()
    token = visitor.token("/upload")
    whole, half = part("a.dcm", images[0]), part("b.dcm", images[1])[:-500]
    with begin(page, visitor, token, whole + half, 1 << 20):
        wait_until(lambda: waiting(world) and left_over(world), 10, "the first file whole")
    wait_until(lambda: waiting(world) and not left_over(world), 10, "the end of the upload")
    assert waiting(world) == {"a.dcm": images[0]}
    (entry,) = world.waiting()
    wait_until(lambda: read_list(world.layout, entry.batch) == [entry.identifier], 10, "the list")


def test_a_body_that_stops_before_its_end_is_no_upload(world, page, images):
    visitor = page.client()
    token = visitor.token("/upload")
    body = part("a.dcm", images[0]) + part("b.dcm", images[1])[:-20]
    status, answer = converse(page, visitor, token, body, len(body))
    assert status == 400
    assert b"broke off" in answer
    assert waiting(world) == {"a.dcm": images[0]}


def test_an_upload_that_stands_still_is_broken_off(world, page, images, monkeypatch):
    monkeypatch.setattr(uploads, "PIECE_SECONDS", 0.3)
    monkeypatch.setattr(uploads, "_LINGER_SECONDS", 0.1)
    visitor = page.client()
    token = visitor.token("/upload")
    status, answer = converse(page, visitor, token, part("a.dcm", images[0])[:-50], 1 << 20)
    assert status == 408
    assert b"too slowly" in answer
    assert not world.waiting()
    assert not left_over(world)


RUBBISH = (
    ("multipart/form-data", b"x", 415),
    ("multipart/form-data; boundary=" + "b" * 71, b"x", 415),
    ("text/plain", b"x", 415),
    ("multipart/form-data; boundary=x", b"rubbish", 400),
    ("multipart/form-data; boundary=x", b"--x\r\nno: name\r\n\r\n\r\n--x--\r\n", 400),
    ("multipart/form-data; boundary=x", b"--x--\r\n", 400),
    ("multipart/form-data; boundary=x", b"--x\r\nh: " + b"v" * 9000 + b"\r\n", 400),
    ("multipart/form-data; boundary=x", FIELD + b"v" * 2000, 400),
    ("multipart/form-data; boundary=x", (FIELD + b"\r\n") * 100_000, 400),
)


def test_rubbish_is_refused_in_words(world, page):
    visitor = page.client()
    headers = {"X-CSRF-Token": visitor.token("/upload"), "Origin": visitor.origin} | JSON
    for kind, body, status in RUBBISH:
        answer = visitor.post("/upload", content=body, headers=headers | {"Content-Type": kind})
        assert answer.status_code == status, body[:50]
        assert answer.json()["error"]
    assert not world.waiting()
    assert not left_over(world)


def test_more_files_than_one_upload_may_have_are_refused(world, page, images, monkeypatch):
    monkeypatch.setattr(taking, "MOST_FILES", 3)
    answer = send(page.client(), {f"{n}.dcm": images[0] for n in range(4)})
    assert answer.status_code == 413
    assert answer.json()["files"] == 3


def test_more_uploads_than_are_taken_at_once_are_asked_to_wait(world, page, images):
    visitor = page.client()
    with every_place(page):
        assert send(visitor, {"a.dcm": images[0]}).status_code == 503
    assert send(visitor, {"a.dcm": images[0]}).status_code == 200


def test_who_is_refused_keeps_no_place_while_the_rest_is_read(world, page):
    visitor = page.client()
    token = visitor.token("/upload")
    size = (world.settings.web.maximum_upload_mb << 20) * 2
    with begin(page, visitor, token, b"--x\r\n", size) as connection:
        wait_until(lambda: take_notes(world.layout), 10, "the refusal")
        wait_until(lambda: has_every_place(page), 5, "its place")
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):  # the answer waits for the rest
            connection.recv(1)


def test_uploads_can_be_switched_off(world, images):
    web = world.settings.web.model_copy(update={"uploads": False})
    with served(world.settings.model_copy(update={"web": web})) as page:
        visitor = page.client()
        assert visitor.get("/upload").status_code == 404
        assert 'href="/upload"' not in visitor.get("/quarantine/retry-all").text
        token = visitor.token("/quarantine/retry-all")
        headers = {"Origin": visitor.origin, "X-CSRF-Token": token}
        answer = visitor.post("/upload", files={"file": ("a", images[0])}, headers=headers)
        assert answer.status_code == 404
    assert not world.waiting()


def test_a_page_of_an_upload_that_nobody_knows_is_not_found(page):
    for batch in ("f0000000000000-00000000", "..%2f..%2fid", "%00", "x" * 200):
        assert page.client().get(f"/upload/{batch}").status_code == 404


def test_lists_of_uploads_are_forgotten_after_a_week(world):
    begin_list(world.layout, "f1-a", now=1e9)
    old = world.layout.run / "uploads" / "f1-a"
    os.utime(old, (1e9, 1e9))
    begin_list(world.layout, "f2-b", now=1e9 + 8 * 86_400)
    assert read_list(world.layout, "f1-a") is None
    assert read_list(world.layout, "f2-b") == []
    add_entries(world.layout, "f9-z", list(entries_of(world.layout, "f9-z")))
    assert read_list(world.layout, "f9-z") is None


# by hand ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def every_place(page: Served) -> Iterator[int]:
    """Take each place for an upload that is free; how many those are."""
    taken = 0
    while page.services.uploading.acquire(blocking=False):
        taken += 1
    yield taken
    for _ in range(taken):
        page.services.uploading.release()


def has_every_place(page: Served) -> bool:
    with every_place(page) as taken:
        return taken == MOST_UPLOADS


def part(name: str, content: bytes) -> bytes:
    head = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + content + b"\r\n"


def begin(page: Served, visitor: Visitor, token: str, body: bytes, size: int) -> socket.socket:
    """Begin an upload that says it has `size` bytes, and send `body` of it."""
    connection = socket.create_connection(("127.0.0.1", page.port), 20)
    head = (
        f"POST /upload HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nOrigin: {visitor.origin}\r\n"
        f"X-CSRF-Token: {token}\r\nCookie: petct={visitor.cookies['petct']}\r\n"
        f"Accept: application/json\r\nConnection: close\r\nContent-Length: {size}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def converse(
    page: Served, visitor: Visitor, token: str, body: bytes, size: int
) -> tuple[int, bytes]:
    """Send that, then wait for the answer: its status and all of it."""
    with begin(page, visitor, token, body, size) as connection:
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return int(answer.split(b" ", 2)[1]), answer
