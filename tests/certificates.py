"""Certificates for tests, made with the openssl command."""

import shutil
import subprocess
from pathlib import Path

from conftest import missing


class Authority:
    """A certification authority of its own, in a folder."""

    def __init__(self, folder: Path, name: str = "Test CA") -> None:
        if shutil.which("openssl") is None:
            missing("openssl")
        folder.mkdir()
        self.folder = folder
        self.certificate = folder / "ca.pem"
        _openssl(
            *("req", "-x509", "-nodes", "-days", "30", "-subj", f"/CN={name}", *_new_key()),
            *("-keyout", folder / "ca.key", "-out", self.certificate),
        )

    def sign(self, name: str, *, days: int = 30) -> tuple[Path, Path]:
        """Return a new certificate for a name and 127.0.0.1, and its key."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request, extensions = self.folder / "request.csr", self.folder / "extensions"
        _openssl("req", "-nodes", "-subj", f"/CN={name}", *_new_key(), "-keyout", key,
                 "-out", request)  # fmt: skip
        extensions.write_text("subjectAltName=IP:127.0.0.1\n")
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-days", days),
            *("-CAkey", self.folder / "ca.key", "-CAcreateserial", "-extfile", extensions),
            *("-out", certificate),
        )
        return certificate, key


def encrypted(key: Path) -> Path:
    """Return a copy of a key that asks for a password."""
    copy = key.with_suffix(".encrypted")
    _openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", copy)
    return copy


def _new_key() -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


def _openssl(*words: object) -> None:
    done = subprocess.run(
        ["openssl", *map(str, words)], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
