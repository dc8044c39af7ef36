"""Read the parts of an upload (multipart/form-data, RFC 7578) while they come, never whole."""

from __future__ import annotations

import os
from collections.abc import Callable

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from daemon.errors import UploadRefused
from daemon.web.taking import Upload

MOST_FIELDS = 10
"""Fields that are no files."""

FIELD_BYTES = 1024
_BAD = 400


def boundary_of(content_type: str) -> bytes:
    """Return what parts the body. Raises UploadRefused."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 70:  # RFC 2046 5.1.1
        raise UploadRefused(415, "an upload is multipart/form-data")
    return boundary


class Parts:
    """Feed it the body piece by piece: files go into the upload as they come.

    `permit` is asked once, with the value of the first field, before any file is taken; with None
    no field is asked for. Raises UploadRefused.
    """

    def __init__(
        self,
        boundary: bytes,
        upload: Upload,
        field: str | None,
        permit: Callable[[str], bool],
    ) -> None:
        self._upload = upload
        self._field = field
        self._permit = permit
        self._headers: list[tuple[bytes, bytes]] = []
        self._header_name = self._header_value = b""
        self._name = ""
        self._value = bytearray()
        self._in_file = False
        self._fields = 0
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._on_header_name,
                "on_header_value": self._on_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_body,
                "on_part_data": self._on_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body."""
        try:
            self._parser.write(data)
        except MultipartParseError:
            raise UploadRefused(_BAD, "what came is no multipart/form-data") from None

    def finish(self) -> None:
        """Check that the body ended where it says so itself: a cut one is no upload."""
        if not self._ended:
            raise UploadRefused(_BAD, "the upload broke off before its end")

    def _begin_part(self) -> None:
        self._headers = []

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._headers.append((self._header_name.lower(), self._header_value))
        self._header_name = self._header_value = b""

    def _begin_body(self) -> None:
        said = dict(self._headers).get(b"content-disposition", b"")
        kind, options = parse_options_header(said.decode("latin-1"))
        if kind != b"form-data":
            raise UploadRefused(_BAD, "a part of the upload has no name")
        name = options.get(b"filename")
        self._name, self._value = options.get(b"name", b"").decode("latin-1"), bytearray()
        self._in_file = name is not None and name != b""  # a form without a file sends an empty one
        if name is None or name == b"":
            self._fields += 1
            if self._fields > MOST_FIELDS:
                raise UploadRefused(_BAD, "the upload has too many fields that are no files")
            return
        if self._field is not None:
            raise UploadRefused(403, "The page was old, or not ours: load it anew, try again.")
        self._upload.begin(os.fsdecode(name))

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._upload.write(memoryview(data)[start:end])
        elif len(self._value) + end - start > FIELD_BYTES:
            raise UploadRefused(_BAD, "a field of the upload is too long")
        else:
            self._value += data[start:end]

    def _end_part(self) -> None:
        if self._in_file:
            self._upload.end()
        elif self._field is not None and self._name == self._field:
            if not self._permit(self._value.decode("latin-1")):
                raise UploadRefused(403, "The page was old, or not ours: load it anew, try again.")
            self._field = None
        self._in_file = False

    def _end(self) -> None:
        self._ended = True
