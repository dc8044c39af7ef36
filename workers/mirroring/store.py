"""The bucket: what the mirror asks of an S3-compatible store, and its errors in plain words.

Every object is sent with its SHA-256 (`x-amz-checksum-sha256`), with a signature over its bytes,
and keeps the digest as metadata: stores of all kinds return that, only some the checksum. Nothing
here deletes an object.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from config.tables.telling import MirrorSettings
from workers.errors import MirrorUnusable
from workers.mirroring.planning import Part, Stored, StoredPart, content_type

_DIGEST = "sha256"
_GONE = ("404", "NoSuchKey", "NotFound", "NoSuchUpload", "NotImplemented")
"""There is no such thing; some stores say so of a list of uploads that is empty."""
_REFUSED = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
            "InvalidToken", "AllAccessDisabled", "Unauthorized", "401")  # fmt: skip
_READ_BYTES = 1 << 20
RETRIES: Mapping[str, int] = MappingProxyType({"total_max_attempts": 4})
"""Of one request, with growing pauses; then the mirror waits, and goes on from there."""
_REGION = "us-east-1"
"""Where nobody names one; most stores of others ask for none."""


class ObjectStore:
    """One bucket below one prefix; for any number of threads."""

    def __init__(self, settings: MirrorSettings, root: Path) -> None:
        self.bucket, self._prefix = settings.place
        self._client = _client(settings, root)

    def check(self) -> None:
        """Raise MirrorUnusable unless the bucket can be listed."""
        with _told(self.bucket):
            self._client.list_objects_v2(Bucket=self.bucket, Prefix=self._prefix, MaxKeys=1)

    def listed(self, folder: str) -> dict[str, int]:
        """Return the size of every object below a folder (with its slash), by key."""
        found: dict[str, int] = {}
        with _told(self.bucket):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._prefix + folder):
                for one in page.get("Contents", ()):
                    found[one["Key"].removeprefix(self._prefix)] = one["Size"]
        return found

    def head(self, key: str) -> Stored | None:
        """Return what the store says of an object, None where it has none."""
        with _told(self.bucket):
            said = _or_none(lambda: self._client.head_object(**self._at(key)))
        return None if said is None else Stored(said["ContentLength"], _digest_in(said))

    def get(self, key: str) -> bytes | None:
        """Return a small object, None where there is none."""
        return None if (pieces := self.read(key)) is None else b"".join(pieces)

    def read(self, key: str) -> Iterator[bytes] | None:
        """Return the bytes of an object piece by piece, None where there is none."""
        with _told(self.bucket):
            said = _or_none(lambda: self._client.get_object(**self._at(key)))
        return None if said is None else self._pieces(said["Body"])

    def put(self, key: str, data: bytes, sha256: str) -> None:
        """Write one object whole, with its hexadecimal SHA-256."""
        with _told(self.bucket):
            self._client.put_object(
                **self._at(key), Body=data, ChecksumAlgorithm="SHA256",
                ChecksumSHA256=base64_of(sha256), **_about(key, sha256),
            )  # fmt: skip

    # in parts -------------------------------------------------------------------------------------

    def unfinished(self, key: str) -> str | None:
        """Return the newest upload of an object that was begun and not ended."""
        with _told(self.bucket):
            asked = {"Bucket": self.bucket, "Prefix": self._prefix + key}
            said = _or_none(lambda: self._client.list_multipart_uploads(**asked)) or {}
        same = [one for one in said.get("Uploads", ()) if one["Key"] == self._prefix + key]
        newest = max(same, key=lambda one: one["Initiated"], default=None)
        return None if newest is None else str(newest["UploadId"])

    def begin(self, key: str, sha256: str) -> str:
        with _told(self.bucket):
            said = self._client.create_multipart_upload(
                **self._at(key), ChecksumAlgorithm="SHA256", **_about(key, sha256)
            )
        return str(said["UploadId"])

    def parts(self, key: str, upload: str) -> dict[int, StoredPart]:
        """Return the parts that an unfinished upload has, by number."""
        found = {}
        with _told(self.bucket):
            pages = self._client.get_paginator("list_parts")
            for page in pages.paginate(**self._at(key), UploadId=upload):
                for one in page.get("Parts", ()):
                    found[int(one["PartNumber"])] = StoredPart(
                        one["Size"], one["ETag"], one.get("ChecksumSHA256")
                    )
        return found

    def put_part(self, key: str, upload: str, part: Part, data: bytes, sha256: str) -> StoredPart:
        """Write one part; its SHA-256 is base64 here."""
        with _told(self.bucket):
            said = self._client.upload_part(
                **self._at(key), UploadId=upload, PartNumber=part.number, Body=data,
                ChecksumAlgorithm="SHA256", ChecksumSHA256=sha256,
            )  # fmt: skip
        return StoredPart(part.size, said["ETag"], sha256)

    def complete(self, key: str, upload: str, parts: Mapping[int, StoredPart]) -> None:
        """Make the object of its parts: only now it can be seen."""
        named = [
            {"PartNumber": number, "ETag": one.etag}
            | ({} if one.sha256 is None else {"ChecksumSHA256": one.sha256})
            for number, one in sorted(parts.items())
        ]
        with _told(self.bucket):
            self._client.complete_multipart_upload(
                **self._at(key), UploadId=upload, MultipartUpload={"Parts": named}
            )

    def abandon(self, key: str, upload: str) -> None:
        """Give up an unfinished upload of ours, whose parts would be paid for unseen."""
        with _told(self.bucket):
            _or_none(lambda: self._client.abort_multipart_upload(**self._at(key), UploadId=upload))

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._prefix + key}

    def _pieces(self, body: Any) -> Iterator[bytes]:
        with _told(self.bucket):
            yield from body.iter_chunks(_READ_BYTES)


def base64_of(sha256: str) -> str:
    """Write a hexadecimal digest as S3 does."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def _about(key: str, sha256: str) -> dict[str, Any]:
    return {"ContentType": content_type(key), "Metadata": {_DIGEST: sha256}}


def _digest_in(said: Mapping[str, Any]) -> str | None:
    """Return the digest among the metadata, whose names some stores capitalize."""
    named = {str(name).lower(): str(value) for name, value in said.get("Metadata", {}).items()}
    return named.get(_DIGEST)


def _client(settings: MirrorSettings, root: Path) -> Any:
    """Make the client. Raises MirrorUnusable where botocore or a file is missing."""
    try:
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise MirrorUnusable("it needs botocore: pip install 'petct-ingest[s3]'") from error
    for name in (
        "botocore",
        "urllib3",
    ):  # at DEBUG they tell signatures
        logging.getLogger(name).setLevel(logging.ERROR)
    session = botocore.session.Session()
    if settings.credentials_file is not None:
        path = root / settings.credentials_file
        if not path.is_file():
            raise MirrorUnusable("mirror.credentials_file is missing, or no file")
        session.set_config_variable("credentials_file", str(path))
    config = Config(
        connect_timeout=10, read_timeout=60, max_pool_connections=settings.connections + 2,
        retries={"mode": "standard", **RETRIES},
        # what S3-compatible servers of others know; we give a checksum ourselves
        request_checksum_calculation="when_required", response_checksum_validation="when_required",
        s3={"addressing_style": "path" if settings.endpoint_url else "auto",
            "payload_signing_enabled": True},
    )  # fmt: skip
    try:
        return session.create_client(
            "s3", region_name=settings.region or session.get_config_variable("region") or _REGION,
            endpoint_url=settings.endpoint_url, config=config,
            verify=str(root / settings.ca_file) if settings.ca_file else None,
        )  # fmt: skip
    except (BotoCoreError, ValueError, OSError) as error:
        raise MirrorUnusable(_words(error)) from error


def _or_none(ask: Callable[[], Any]) -> Any:
    """Ask; None where what is asked for does not exist."""
    from botocore.exceptions import ClientError

    try:
        return ask()
    except ClientError as error:
        if _code(error) in _GONE:
            return None
        raise


@contextmanager
def _told(bucket: str) -> Iterator[None]:
    """Say in our words what the store, or the way to it, has against us."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code == "NoSuchBucket":
            words = f"there is no bucket {bucket!r}: make it, or mend mirror.url"
        elif code in _REFUSED:
            words = f"it refuses our credentials, or what they may do ({code})"
        else:
            words = f"it answers {code}"
        raise MirrorUnusable(words) from error
    except (BotoCoreError, OSError) as error:
        raise MirrorUnusable(_words(error)) from error


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "an error"))


def _words(error: BaseException) -> str:
    """Name an error of the library; its own text may hold keys or addresses."""
    from botocore import exceptions

    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return "no credentials: give mirror.credentials_file, or AWS_ACCESS_KEY_ID and its secret"
    if isinstance(error, exceptions.SSLError):
        return "its certificate is not signed by whom we trust: mirror.ca_file"
    if isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError):
        return f"it cannot be reached ({type(error).__name__})"
    return f"it cannot be used: {type(error).__name__}"
