"""Archives: what is readable comes, what is not is a finding, and nothing harms."""

import bz2
import gzip
import os
import struct
import tarfile
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import odd_archives as odd
import pytest
from conftest import PROJECT
from odd_archives import FILES, KINDS, packed, padded, tar_end, tar_header, tarred, zipped

from workers import limits
from workers.archives.members import Bounds, Finding, Member
from workers.archives.opening import open_archive
from workers.errors import DataError, Exceeded
from workers.limits import MIB, Limit


@dataclass
class Contents:
    """What came out of an archive, read as an intake would."""

    files: dict[str, bytes] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    found: list[tuple[str, str]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    bytes_read: int = 0

    @property
    def codes(self) -> list[str]:
        return [code for _, code in self.found]


def read(archive: Path, bounds: Bounds | None = None, *, keep: bool = True) -> Contents:
    contents = Contents()
    with closing(open_archive(archive, bounds, archive.parent)) as members:
        for one in members:
            if isinstance(one, Finding):
                contents.found.append((one.name, one.code))
                contents.words.append(one.words)
                continue
            data = b""
            try:
                for chunk in one.stream.chunks():
                    contents.bytes_read += len(chunk)
                    data += chunk if keep else b""
            except DataError as error:
                contents.found.append((one.name, error.code))
                contents.words.append(str(error))
            else:
                contents.files[one.name] = data
                contents.paths.append(one.path)
    assert len(set(contents.paths)) == len(contents.paths)
    for path in contents.paths:
        parts = PurePosixPath(path).parts
        assert parts, "a member without a path"
        assert not PurePosixPath(path).is_absolute()
        assert ".." not in parts
        assert "\0" not in path
        assert max(len(os.fsencode(part)) for part in parts) <= 255
    return contents


def at(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@contextmanager
def at_most(mebibytes: float) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < mebibytes * MIB, f"{peak / MIB:.1f} MiB"


# what is sound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_of_every_kind_comes_with_its_bytes(tmp_path: Path, kind: str) -> None:
    contents = read(at(tmp_path, f"one{kind}", packed(kind)))
    assert contents.files == FILES
    assert contents.paths == list(FILES)
    assert not contents.found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["one.zip", "one.tar", "one.tgz"])
def test_the_bytes_tell_the_kind_and_a_wrong_name_is_reported(
    tmp_path: Path, kind: str, name: str
) -> None:
    contents = read(at(tmp_path, name, packed(kind)))
    assert contents.files == FILES
    right = {".tar": (".tar",), ".zip": (".zip",)}.get(kind, (".tgz", ".tar.gz"))
    if kind != ".tar.bz2" and name.endswith(right):
        assert not contents.found
    else:
        assert contents.codes == ["other-kind"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_come_in_every_form_of_tar(tmp_path: Path, form: int) -> None:
    long = "/".join(["folder"] * 20) + "/" + "n" * 90 + ".dcm"
    files = {long: b"long", "ä" * 40: b"umlauts"}
    contents = read(at(tmp_path, "one.tar", tarred(files, form)))
    assert contents.files == files
    assert not contents.found


def test_a_zip_written_to_a_pipe_is_read(tmp_path: Path) -> None:
    assert read(at(tmp_path, "one.zip", odd.streamed_zip(FILES))).files == FILES


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2])
def test_other_compressions_of_zip_are_read(tmp_path: Path, compression: int) -> None:
    content = zipped(FILES, compression=compression)
    assert read(at(tmp_path, "one.zip", content)).files == FILES


def test_a_zip64_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        for name, content in FILES.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(content)
    assert read(tmp_path / "one.zip").files == FILES


@pytest.mark.parametrize("inner", KINDS)
@pytest.mark.parametrize("outer", KINDS)
def test_archives_in_archives_are_read(tmp_path: Path, outer: str, inner: str) -> None:
    content = packed(outer, {"x/day": b"1", f"x/PET{inner}": packed(inner), "last.dcm": b"2"})
    contents = read(at(tmp_path, f"one{outer}", content))
    assert contents.files == {
        "x/day": b"1", "last.dcm": b"2",
        **{f"x/PET{inner}/{name}": data for name, data in FILES.items()},
    }  # fmt: skip
    assert not contents.found
    assert not [left for left in tmp_path.iterdir() if left.name != f"one{outer}"]


def test_a_dicom_file_is_no_archive_whatever_its_preamble_says(tmp_path: Path) -> None:
    slice_ = b"PK\3\4".ljust(128, b"\0") + b"DICM" + bytes(400)
    contents = read(at(tmp_path, "one.tar", tarred({"dual.zip": slice_})))
    assert contents.files == {"dual.zip": slice_}


def test_a_member_can_be_read_only_until_the_next(tmp_path: Path) -> None:
    with closing(open_archive(at(tmp_path, "one.tar", packed(".tar")))) as members:
        first = next(members)
        assert isinstance(first, Member)
        assert first.stream.read(3) == b"fir"
        second = next(members)
        assert isinstance(second, Member)
        with pytest.raises(ValueError, match="over"):
            first.stream.read(1)
        assert b"".join(second.stream.chunks()) == FILES["imaging/sub-1/b.dcm"]


def test_a_link_in_place_of_an_archive_is_not_followed(tmp_path: Path) -> None:
    at(tmp_path, "one.tar", packed(".tar"))
    (tmp_path / "link.tar").symlink_to("one.tar")
    with pytest.raises(OSError, match="symbolic"):
        next(open_archive(tmp_path / "link.tar"))


@pytest.mark.parametrize("content", [zipped({}), tarred({})])
def test_an_empty_archive_is_no_harm(tmp_path: Path, content: bytes) -> None:
    contents = read(at(tmp_path, "one.zip" if content.startswith(b"PK") else "one.tar", content))
    assert not contents.files
    assert contents.codes in ([], ["damaged-archive"])


# names --------------------------------------------------------------------------------------------

NAMES = {
    "/etc/passwd": "etc/passwd",
    "../../etc/cron.d/x": "etc/cron.d/x",
    "a/../../b": "a/b",
    "./plain.dcm": None,
    "a//b.dcm": None,
    "..": "member-",
    "n" * 300: "member-",
    "/".join("d" * 40): "member-",
    "x/" * 600 + "y": "member-",
    "two\nlines\r.dcm": None,
    "C:\\Windows\\x.dcm": None,
    "...": None,
}


@pytest.mark.parametrize("kind", [".tar", ".zip"])
@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_reported_and_never_used(tmp_path: Path, kind: str, name: str) -> None:
    contents = read(at(tmp_path, f"one{kind}", packed(kind, {name: b"data", "good": b"good"})))
    assert contents.files["good"] == b"good"
    assert set(contents.files.values()) == {b"data", b"good"}
    expected = NAMES[name]
    assert contents.codes == (["renamed"] if expected else [])
    assert expected is None or contents.paths[0].startswith(expected)


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a", "a"],
        ["a", "a/b"],
        ["a/b", "a"],
        ["a/b/c", "a/b", "a"],
        ["x", "../x", "/x", "./x", "x//"],
    ],
)
def test_no_two_members_share_a_path(tmp_path: Path, names: list[str]) -> None:
    pairs = [(name.rstrip("/"), str(number).encode()) for number, name in enumerate(names)]
    archive = at(tmp_path, "one.zip", zipped(pairs))
    into = tmp_path / "out"
    with closing(open_archive(archive)) as members:
        for one in members:
            if isinstance(one, Member):
                (into / one.path).parent.mkdir(parents=True, exist_ok=True)
                with open(into / one.path, "xb") as file:
                    file.write(one.stream.read())
    assert sorted(p.read_bytes() for p in into.rglob("*") if p.is_file()) == [
        data for _, data in pairs
    ]


def test_names_in_any_bytes_are_paths(tmp_path: Path) -> None:
    head = bytearray(tar_header("x" * 8, 4))
    head[:8] = b"\xe4\xf6\xfc\xff\x80\x01\x7fz"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    contents = read(at(tmp_path, "one.tar", bytes(head) + padded(b"data") + tar_end()))
    assert os.fsencode(contents.paths[0]) == b"\xe4\xf6\xfc\xff\x80\x01\x7fz"


def test_a_zip_with_a_name_that_is_no_utf_8_is_read_all_the_same(tmp_path: Path) -> None:
    content = zipped({"ä.dcm": b"data", "good": b"good"}).replace("ä".encode(), b"\xff\xfe")
    contents = read(at(tmp_path, "one.zip", content))
    assert list(contents.files.values()) == [b"data", b"good"]
    assert contents.codes == ["truncated"]


def test_a_zip_with_a_member_of_no_name_is_read(tmp_path: Path) -> None:
    content = zipped({"x": b"data", "good": b"good"})
    at_name = content.rindex(b"PK\1\2", 0, content.rindex(b"PK\1\2"))
    nameless = bytearray(content)
    nameless[at_name + 28], nameless[at_name + 30] = 0, 1  # its letter is an extra field now
    contents = read(at(tmp_path, "one.zip", bytes(nameless)))
    assert b"good" in contents.files.values()


def test_a_zip_with_a_member_before_its_begin_is_read(tmp_path: Path) -> None:
    content = bytearray(zipped({"x": b"data", "good": b"good"}))
    place = content.index(b"PK\5\6") + 16
    offset = struct.unpack_from("<L", content, place)[0]
    struct.pack_into("<L", content, place, offset + 9)  # so all members lie 9 bytes before
    contents = read(at(tmp_path, "one.zip", bytes(content)))
    assert "damaged-archive" in contents.codes
    assert set(contents.files.values()) <= {b"data", b"good"}


# what is no file ----------------------------------------------------------------------------------


def test_links_devices_and_pipes_are_reported_and_not_made(tmp_path: Path) -> None:
    content = b"".join(
        (
            tar_header("hard", 0, tarfile.LNKTYPE, "/etc/passwd"),
            tar_header("soft", 0, tarfile.SYMTYPE, "../../etc"),
            tar_header("tty", 0, tarfile.CHRTYPE),
            tar_header("disk", 0, tarfile.BLKTYPE),
            tar_header("pipe", 0, tarfile.FIFOTYPE),
            tar_header("folder", 0, tarfile.DIRTYPE),
            tar_header("volume", 0, b"V"),
            tar_header("soft/passwd", 4),
            padded(b"data"),
            tar_end(),
        )
    )
    contents = read(at(tmp_path, "one.tar", content))
    assert contents.codes == ["link", "link", "device", "device", "device", "unknown-kind"]
    assert contents.files == {"soft/passwd": b"data"}


def test_links_and_pipes_in_a_zip_are_reported(tmp_path: Path) -> None:
    contents = read(at(tmp_path, "one.zip", odd.linked_zip()))
    assert contents.codes == ["link", "device"]
    assert contents.files == {"good.dcm": b"good"}


def test_files_with_holes_are_reported(tmp_path: Path) -> None:
    pax = b"22 GNU.sparse.major=1\n" + b"20 GNU.sparse.size=9\n"[:0]
    content = b"".join(
        (
            odd.sparse_chain(0)[:482], b"\0", odd.sparse_chain(0)[483:],
        )
    )  # fmt: skip
    head = bytearray(content)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    content = b"".join(
        (
            bytes(head), bytes(512),
            tar_header("pax", len(pax), tarfile.XHDTYPE), padded(pax),
            tar_header("holes-too", 512), bytes(512),
            tar_header("good", 4), padded(b"good"), tar_end(),
        )
    )  # fmt: skip
    contents = read(at(tmp_path, "one.tar", content))
    assert contents.codes == ["sparse", "sparse"]
    assert contents.files == {"good": b"good"}


def test_encrypted_members_are_reported_and_the_others_come(tmp_path: Path) -> None:
    contents = read(at(tmp_path, "one.zip", odd.encrypted_zip()))
    assert contents.found == [("secret.dcm", "encrypted")]
    assert contents.files == {"good.dcm": b"good"}


def test_an_unknown_compression_is_reported(tmp_path: Path) -> None:
    content = zipped(FILES, compression=zipfile.ZIP_LZMA)
    contents = read(at(tmp_path, "one.zip", content))
    assert contents.codes == ["unknown-kind"] * len(FILES)


# damage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_cut_archive_the_readable_comes_and_the_cut_is_reported(
    tmp_path: Path, kind: str
) -> None:
    files = {f"{number:03}.dcm": os.urandom(3000) for number in range(40)}
    whole = packed(kind, files)
    for share in (0.92, 0.7, 0.3, 0.01):
        contents = read(at(tmp_path, f"one{kind}", whole[: int(len(whole) * share)]))
        assert contents.codes[-1] in ("truncated", "damaged-archive")
        assert all(files[name] == data for name, data in contents.files.items())
        # bzip2 decodes blocks of 900 KB, and these archives are smaller
        if kind != ".tar.bz2" and share > 0.1:
            assert len(contents.files) >= 40 * share - 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_in_a_damaged_archive_is_noticed(tmp_path: Path, kind: str) -> None:
    files = {f"{number:03}.dcm": os.urandom(2000) for number in range(10)}
    whole = packed(kind, files)
    for place in range(20, len(whole), len(whole) // 30):
        content = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        contents = read(at(tmp_path, f"one{kind}", content))
        wrong = set(contents.files.values()) - set(files.values())
        if kind in (".tgz", ".tar.gz"):  # its checksum is at the end, behind all members
            assert not wrong or contents.codes == ["damaged-archive"]
        elif kind != ".tar":  # which has no checksum of its data
            assert not wrong


def test_of_bzip2_data_nothing_comes_of_a_block_whose_checksum_does_not_fit(
    tmp_path: Path,
) -> None:
    sizes = (1_500_000, 40_000_000)  # zeros: a block gives far more than it holds
    for number, size in enumerate(sizes):
        files = {f"{name}.dcm": os.urandom(1_000_000) for name in ("first", "next")}
        files["zeros.dcm"] = bytes(size)
        whole = packed(".tar.bz2", files)
        block = bytes.fromhex("314159265359")  # what each block begins with, at any bit
        bits = "".join(f"{byte:08b}" for byte in whole)
        at_bit = bits.rindex("".join(f"{byte:08b}" for byte in block)) + 48 + 5  # its checksum
        content = bytearray(whole)
        content[at_bit // 8] ^= 0x80 >> at_bit % 8
        contents = read(at(tmp_path, f"{number}.tar.bz2", bytes(content)))
        assert contents.codes == ["damaged-archive"]
        assert contents.files.get("first.dcm") in (None, files["first.dcm"])
        assert "next.dcm" not in contents.files
        assert "zeros.dcm" not in contents.files
        cut = read(at(tmp_path, f"cut{number}.tar.bz2", whole[:-20]))
        assert set(cut.codes) == {"truncated"}
        assert cut.files["first.dcm"] == files["first.dcm"]


def test_of_a_damaged_block_nothing_comes_wherever_bzip2_data_is_cut_behind_it(
    tmp_path: Path,
) -> None:
    files = {f"{number}.dcm": os.urandom(1000) for number in range(1200)}  # two blocks
    whole = packed(".tar.bz2", files)
    block = "".join(f"{byte:08b}" for byte in bytes.fromhex("314159265359"))
    at_bit = "".join(f"{byte:08b}" for byte in whole).rindex(block) + 48 + 5
    content = bytearray(whole)
    content[at_bit // 8] ^= 0x80 >> at_bit % 8
    sound = read(at(tmp_path, "sound.tar.bz2", whole[:-20])).files
    assert 0 < len(sound) < len(files)
    for cut in (0, 9, 10, 11):  # the mark of the end is 10 bytes, and begins at any bit
        contents = read(at(tmp_path, f"{cut}.tar.bz2", bytes(content[: len(content) - cut])))
        assert set(contents.codes) in ({"damaged-archive"}, {"truncated"})
        assert contents.files.keys() <= sound.keys()


def test_streams_of_bzip2_that_follow_one_another_are_one_and_padding_is_none(
    tmp_path: Path,
) -> None:
    files = {f"{number}.dcm": os.urandom(100_000) for number in range(3)}
    inside = bz2.decompress(packed(".tar.bz2", files))
    step = 65_529
    streams = b"".join(
        bz2.compress(inside[start : start + step]) for start in range(0, len(inside), step)
    )
    for padding in (b"", b"\0" * 700):
        contents = read(at(tmp_path, "many.tar.bz2", streams + padding))
        assert contents.files == files
        assert contents.codes == []


def test_a_zip_written_to_a_pipe_and_cut_gives_what_it_has(tmp_path: Path) -> None:
    files = {f"{number}.dcm": os.urandom(500) for number in range(9)}
    whole = odd.streamed_zip(files)
    contents = read(at(tmp_path, "one.zip", whole[: whole.index(b"PK\1\2") + 20]))
    assert contents.files == files
    assert contents.codes == ["truncated"]


def test_a_damaged_archive_in_a_sound_one_stops_nothing(tmp_path: Path) -> None:
    inner = packed(".tgz")
    content = packed(".zip", {"bad.tgz": inner[:-30], "none.zip": b"no zip", "good": b"good"})
    contents = read(at(tmp_path, "one.zip", content))
    assert contents.files["good"] == b"good"
    assert ("bad.tgz/", "truncated") in contents.found


@pytest.mark.parametrize("kind", [".tar", ".tgz", ".tar.bz2"])
def test_what_hides_behind_the_end_of_a_tar_is_reported(tmp_path: Path, kind: str) -> None:
    content = {".tar": bytes, ".tgz": gzip.compress, ".tar.bz2": bz2.compress}[kind](
        tarred({"one": b"1"}) + tarred({"two": b"2"})
    )
    contents = read(at(tmp_path, f"one{kind}", content))
    assert contents.files == {"one": b"1"}
    assert contents.codes == ["damaged-archive"]


@pytest.mark.parametrize("name", ["text.zip", "zeros.zip", "empty.tar", "short.tgz"])
def test_what_is_no_archive_is_one_finding(tmp_path: Path, name: str) -> None:
    content = {
        "text.zip": b"hello" * 200,
        "zeros.zip": b"PK\3\4" + bytes(500),
        "empty.tar": b"",
        "short.tgz": b"\x1f\x8b\x08",
    }[name]
    contents = read(at(tmp_path, name, content))
    assert contents.codes in (["damaged-archive"], ["truncated"])
    assert not contents.files


# bombs --------------------------------------------------------------------------------------------


def test_a_bomb_of_zeros_is_stopped_early(tmp_path: Path) -> None:
    archive = at(tmp_path, "one.tar.bz2", odd.zeros_in_bzip2(256 << 20))
    with open(archive, "rb+") as file:
        size = file.seek(0, 2)
    assert size < 2000
    with at_most(8):
        contents = read(archive, keep=False)
    assert contents.codes[-1] == "compressed-too-well"
    assert contents.bytes_read < 70 * MIB


def test_a_member_that_says_ten_gigabytes_is_not_read(tmp_path: Path) -> None:
    content = bz2.compress(tar_header("zeros.dcm", 10 << 30) + bytes(1 << 20))
    contents = read(at(tmp_path, "one.tar.bz2", content), keep=False)
    assert contents.codes == ["member-too-large", "truncated"]
    assert contents.bytes_read == 0


def test_a_zip_bomb_is_refused_member_by_member(tmp_path: Path) -> None:
    archive = at(tmp_path, "one.zip", odd.bomb(2, 96 << 20))
    with at_most(8):
        contents = read(archive, keep=False)
    assert contents.codes == ["compressed-too-well"] * 2
    assert contents.bytes_read == 0


def test_many_small_bombs_in_one_zip_are_one_bomb(tmp_path: Path) -> None:
    archive = at(tmp_path, "one.zip", odd.bomb(30, 6 << 20))
    contents = read(archive, keep=False)
    assert "compressed-too-well" in contents.codes
    assert contents.bytes_read < 64 * MIB + 250 * archive.stat().st_size + MIB


def test_zips_in_zips_are_counted_together(tmp_path: Path) -> None:
    archive = at(tmp_path, "42.zip", odd.forty_two())
    assert archive.stat().st_size < 100_000
    with at_most(20):
        contents = read(archive, keep=False)
    assert contents.codes[-1] == "compressed-too-well"
    assert contents.bytes_read < 64 * MIB + 250 * archive.stat().st_size + MIB


def test_members_that_share_their_data_are_refused(tmp_path: Path) -> None:
    contents = read(at(tmp_path, "one.zip", odd.overlapping()))
    assert contents.codes[:2] == ["overlapping"] * 2
    assert len(contents.files) <= 1


def test_bzip2_in_a_zip_takes_no_memory(tmp_path: Path) -> None:
    content = zipped({"zeros.dcm": bytes(60 << 20)}, compression=zipfile.ZIP_BZIP2)
    with at_most(8):
        contents = read(at(tmp_path, "one.zip", content), keep=False)
    assert contents.bytes_read == 60 << 20


HEADER_BOMBS: dict[str, Callable[[], bytes]] = {
    "an extended header of 8 GB": lambda: tar_header("x", 8 << 30, tarfile.XHDTYPE),
    "a global header of 8 GB": lambda: tar_header("x", 8 << 30, tarfile.XGLTYPE),
    "a long name of 8 GB": lambda: tar_header("x", 8 << 30, tarfile.GNUTYPE_LONGNAME),
    "a long link of 8 GB": lambda: tar_header("x", 8 << 30, tarfile.GNUTYPE_LONGLINK),
    "ten thousand extended headers": lambda: (
        (tar_header("x", 10, tarfile.XHDTYPE) + padded(b"10 path=a\n")) * 10_000
    ),
    "ten thousand maps of holes": lambda: odd.sparse_chain(10_000),
}


@pytest.mark.parametrize("name", HEADER_BOMBS)
def test_a_bomb_in_a_header_of_a_tar_is_refused(tmp_path: Path, name: str) -> None:
    content = tar_header("good", 4) + padded(b"good") + HEADER_BOMBS[name]() + bytes(1 << 20)
    archive = at(tmp_path, "one.tgz", gzip.compress(content))
    with at_most(4):
        contents = read(archive)
    assert contents.files == {"good": b"good"}
    assert contents.codes == ["member-header-too-large"]


@pytest.mark.parametrize(
    "pax",
    [b"9" * 60_000, b"9" * 30 + b" path=x\n", b"0 path=x\n", b"5 a=b\n", b"13 size=abc\n",
     b"14 size=-100\n", b"no record at all", b" path=x\n"],
)  # fmt: skip
def test_a_damaged_extended_header_ends_the_reading_at_once(tmp_path: Path, pax: bytes) -> None:
    content = tar_header("x", len(pax), tarfile.XHDTYPE) + padded(pax) + tar_header("y") + tar_end()
    contents = read(at(tmp_path, "one.tar", content))
    assert contents.codes == ["damaged-archive"]


def test_a_negative_size_ends_the_reading(tmp_path: Path) -> None:
    head = bytearray(tar_header("x", 0))
    head[124:136] = b"\xff" * 12
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    contents = read(at(tmp_path, "one.tar", bytes(head) + tar_end()))
    assert contents.codes == ["damaged-archive"]


def test_a_directory_of_a_zip_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 40 << 20, 0, 0)
    archive = tmp_path / "one.zip"
    with open(archive, "wb") as file:
        file.write(b"PK\3\4")
        file.truncate(40 << 20)
        file.seek(40 << 20)
        file.write(end)
    with at_most(2):
        contents = read(archive)
    assert contents.codes == ["directory-too-large"]


def test_a_tar_of_too_many_members_takes_little_memory(tmp_path: Path) -> None:
    few = Bounds(members=replace(limits.MEMBERS, maximum=2000))
    header = tar_header("one.dcm", 0, tarfile.SYMTYPE, "x")
    with gzip.open(tmp_path / "one.tgz", "wb", compresslevel=1) as file:
        for _ in range(100):
            file.write(header * 100)
    with at_most(4):
        count = Counter(
            one.code for one in open_archive(tmp_path / "one.tgz", few) if isinstance(one, Finding)
        )
    assert count == {"link": 2000, "too-many-members": 1}


def test_paths_of_many_members_are_remembered_in_little_memory(tmp_path: Path) -> None:
    with open(tmp_path / "one.tar", "wb") as file:
        for number in range(3000):
            file.write(tar_header(f"folder-of-a-patient/{number}", 0))
        file.write(tar_end())
    with at_most(1):
        assert sum(isinstance(one, Member) for one in open_archive(tmp_path / "one.tar")) == 3000


@pytest.mark.parametrize("kind", [".zip", ".tgz", ".tar"])
def test_fifty_archives_in_each_other_end_at_the_limit(tmp_path: Path, kind: str) -> None:
    contents = read(at(tmp_path, f"one{kind}", odd.nested(50, kind)))
    assert contents.codes == ["archives-too-deep"]
    assert len(contents.files) == limits.NESTED.maximum
    assert not [left for left in tmp_path.iterdir() if left.name != f"one{kind}"]


def test_an_inner_zip_that_fills_the_disk_is_refused(tmp_path: Path) -> None:
    small = Bounds(inner_zip=replace(limits.INNER_ZIP, maximum=1000))
    content = packed(".tar", {"in.zip": zipped({"a": os.urandom(5000)}), "good": b"good"})
    contents = read(at(tmp_path, "one.tar", content), small)
    assert contents.found == [("in.zip/", "inner-zip-too-large")]
    assert contents.files == {"good": b"good"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_beyond_its_limit_is_a_finding_and_the_rest_comes(
    tmp_path: Path, kind: str
) -> None:
    small = Bounds(member=replace(limits.MEMBER, maximum=1200))
    contents = read(at(tmp_path, f"one{kind}", packed(kind)), small)
    assert contents.found == [("a.dcm", "member-too-large")]
    assert len(contents.files) == len(FILES) - 1


def test_a_zip_that_lies_about_a_length_is_stopped_by_the_bytes(tmp_path: Path) -> None:
    small = Bounds(member=replace(limits.MEMBER, maximum=1 << 20))
    content = bytearray(zipped({"a": bytes(4 << 20)}))
    for signature, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<L", content, content.index(signature) + place, 100)
    contents = read(at(tmp_path, "one.zip", bytes(content)), small)
    assert contents.codes == ["member-too-large"]


def test_what_is_over_its_whole_limit_ends(tmp_path: Path) -> None:
    small = Bounds(unpacked=replace(limits.UNPACKED, maximum=10_000))
    for kind in KINDS:
        contents = read(at(tmp_path, f"one{kind}", packed(kind, {
            str(number): bytes(1000) for number in range(40)})), small)  # fmt: skip
        assert "unpacks-too-far" in contents.codes
        assert len(contents.files) <= 10


def test_the_table_of_limits_has_those_of_archives() -> None:
    table = (PROJECT / "docs" / "limits.md").read_text(encoding="utf-8")
    for limit in limits.ARCHIVES:
        row = next(row for row in table.splitlines() if f"`{limit.code}`" in row)
        assert limit.what in row
        assert limit.why in row


def test_exceeding_says_what_where_and_how_much() -> None:
    limit = Limit("some-code", 10, "the archive has", "members", "why")
    assert str(Exceeded(limit)) == "the archive has more than 10 members"
    assert str(Exceeded(limit, 12)) == "the archive has 12 members; at most 10 are taken"
