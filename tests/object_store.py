"""A server that speaks S3, as a process of its own (moto), and what a test asks of it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import missing
from installation import free_port
from running import wait_until

PREFIX = "site-a/"
KEY_ID, SECRET = "AKIAEXAMPLE", "a secret of the store"


@dataclass
class Bucket:
    """A bucket, and a client that looks at it from outside."""

    endpoint: str
    client: Any
    name: str

    def listed(self, below: str = "") -> list[str]:
        """The keys of the objects, in order, without the prefix."""
        pages = self.client.get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self.name, Prefix=PREFIX + below)
        return [
            one["Key"].removeprefix(PREFIX) for page in found for one in page.get("Contents", ())
        ]

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=PREFIX + key)["Body"].read()

    def get_json(self, key: str) -> Any:
        return json.loads(self.get(key))

    def spoil(self, key: str, data: bytes, **about: Any) -> None:
        """Put other bytes under a key, as somebody else might."""
        self.client.put_object(Bucket=self.name, Key=PREFIX + key, Body=data, **about)

    def remove(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=PREFIX + key)

    def settings(self, folder: Path, **more: Any) -> dict[str, Any]:
        """The table [mirror] for this bucket; its credentials lie below `folder`."""
        secret = folder / "s3.ini"
        secret.write_text(
            f"[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n"
        )
        return {
            "url": f"s3://{self.name}/{PREFIX}",
            "endpoint_url": self.endpoint,
            "credentials_file": str(secret),
            **more,
        }


@contextlib.contextmanager
def store_process(port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server; entered when it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | environment,
    )
    try:

        def answers() -> bool:
            assert process.poll() is None, "the object store ended at once"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        wait_until(answers, 30, "the object store")
        yield process
    finally:
        process.kill()
        process.wait(10)


def a_client(endpoint: str) -> Any:
    import botocore.session

    return botocore.session.Session().create_client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET,
    )  # fmt: skip


@contextlib.contextmanager
def a_store() -> Iterator[str]:
    """A server of its own; yields its address."""
    try:
        import moto.server  # noqa: F401
    except ImportError:
        missing("no moto")
    port = free_port()
    with store_process(port):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def a_bucket(endpoint: str, name: str) -> Iterator[Bucket]:
    """An empty bucket."""
    client = a_client(endpoint)
    client.create_bucket(Bucket=name)
    yield Bucket(endpoint, client, name)
    client.close()
