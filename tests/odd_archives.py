"""Make archives: good ones, and those that nobody should send."""

import bz2
import gzip
import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

KINDS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".zip")
FILES = {
    "a.dcm": b"first" * 300,
    "imaging/sub-1/b.dcm": bytes(1024),
    "imaging/sub-1/c.dcm": b"",
    "imaging/ä/d.dcm": b"last",
}


def packed(kind: str, files: Mapping[str, bytes] = FILES) -> bytes:
    """An ordinary archive of one of the five kinds."""
    if kind == ".zip":
        return zipped(files)
    plain = tarred(files)
    if kind == ".tar":
        return plain
    return bz2.compress(plain) if kind == ".tar.bz2" else gzip.compress(plain, mtime=0)


def zipped(files: Mapping[str, bytes] | Iterable[tuple[str, bytes]], **options: Any) -> bytes:
    """A zip, of one name twice if need be."""
    pairs = files.items() if isinstance(files, Mapping) else files
    place = io.BytesIO()
    with zipfile.ZipFile(place, "w", options.pop("compression", zipfile.ZIP_DEFLATED)) as archive:
        for name, content in pairs:
            info = zipfile.ZipInfo(name)
            info.compress_type = archive.compression
            # as the library does it for a second of the same name, but without its warning
            archive.NameToInfo.pop(name, None)
            for option, value in options.items():
                setattr(info, option, value)
            archive.writestr(info, content)
    return place.getvalue()


def streamed_zip(files: Mapping[str, bytes]) -> bytes:
    """A zip whose sizes follow each member, as one written to a pipe."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
        for name, content in files.items():
            archive.writestr(name, content)
    return pipe.data


def tarred(files: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    place = io.BytesIO()
    with tarfile.open(fileobj=place, mode="w", format=format) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return place.getvalue()


def tar_header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """One header block; its data and the end mark are the caller's."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT)


def tar_end() -> bytes:
    return bytes(1024)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def sparse_chain(blocks: int) -> bytes:
    """An old GNU sparse member with so many blocks of holes, none of which is the last."""
    head = bytearray(tar_header("holes", 512, tarfile.GNUTYPE_SPARSE))
    head[482] = 1
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    more = bytearray(512)
    more[504] = 1
    return bytes(head) + bytes(more) * blocks


def bomb(count: int, member_bytes: int = 10 << 20) -> bytes:
    """A zip of `count` files of zeros, small on disk."""
    zeros = bytes(member_bytes)
    return zipped({f"{number}.dcm": zeros for number in range(count)})


def nested(levels: int, kind: str = ".zip") -> bytes:
    """An archive in an archive in an archive…, with a file at each level."""
    content = packed(kind, {"inner.dcm": b"inside"})
    for level in range(levels - 1):
        content = packed(kind, {f"{level}.dcm": b"level", f"inner{kind}": content})
    return content


def forty_two(levels: int = 3, width: int = 8) -> bytes:
    """Zips in zips, the innermost of zeros: a small relative of 42.zip."""
    content = zipped({"0.dcm": bytes(4 << 20)})
    for _ in range(levels):
        content = zipped({f"{number}.zip": content for number in range(width)})
    return content


def zeros_in_bzip2(total: int) -> bytes:
    """A tar.bz2 whose one member says and has `total` zeros: one block is packed and repeated."""
    head = tar_header("zeros.dcm", 8 << 30 if total > 8 << 30 else total)
    packer = bz2.BZ2Compressor()
    data = [packer.compress(head)]
    piece = bytes(1 << 22)
    data += [packer.compress(piece) for _ in range(total >> 22)]
    return b"".join((*data, packer.flush()))


def overlapping() -> bytes:
    """A zip whose second and third member lie in the data of the first (Fifield's quoted bomb)."""
    kernel = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    inner_data = kernel.compress(bytes(100_000)) + kernel.flush()

    def local(name: bytes, packed_size: int) -> bytes:
        return struct.pack(
            "<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, packed_size, 100_000, len(name), 0
        ) + name  # fmt: skip

    names = (b"1.dcm", b"2.dcm", b"3.dcm")
    tail = local(names[2], len(inner_data)) + inner_data
    body = tail
    for name in reversed(names[:2]):
        quoted = b"\0" + struct.pack("<HH", len(body), len(body) ^ 0xFFFF)  # a stored block
        body = local(name, len(quoted) + len(body)) + quoted + body
    directory, place = b"", 0
    for name in names:
        place = body.index(b"PK\3\4", place)
        size = struct.unpack_from("<L", body, place + 18)[0]
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, size, 100_000, len(name), 0, 0, 0, 0,
            0, place,
        ) + name  # fmt: skip
        place += 4
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, len(directory), len(body), 0)
    return body + directory + end


def linked_zip() -> bytes:
    info = zipfile.ZipInfo("link.dcm")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    pipe = zipfile.ZipInfo("pipe.dcm")
    pipe.create_system, pipe.external_attr = 3, (stat.S_IFIFO | 0o666) << 16
    place = io.BytesIO()
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr(info, "/etc/passwd")
        archive.writestr(pipe, "")
        archive.writestr("good.dcm", b"good")
    return place.getvalue()


def encrypted_zip() -> bytes:
    """A zip whose first member says that it is encrypted."""
    content = bytearray(zipped({"secret.dcm": b"x" * 50, "good.dcm": b"good"}))
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)
