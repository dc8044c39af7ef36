"""Settings: every default is written down, every mistake is named."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT

from config.errors import BadValue, ConfigError, ConfigUnreadable, UnknownKey
from config.settings import Settings, known_keys, load_settings
from config.tables.intake import SourcePolicy, WatchSettings

DEFAULT = PROJECT / "config" / "default.toml"
COMMENTED = re.compile(r"^# (\[\[?\w+\]\]?|\w+ = .*)$")


def default_text(*, uncommented: bool) -> str:
    lines = DEFAULT.read_text().splitlines()
    if uncommented:
        lines = [line[2:] if COMMENTED.match(line) else line for line in lines]
    return "\n".join(lines)


def load(tmp_path: Path, text: str = "", **environ: str) -> Settings:
    path = tmp_path / "petct.toml"
    path.write_text(text)
    return load_settings(path, root=tmp_path / "root", environ=environ)


def test_the_default_file_repeats_every_default(tmp_path: Path) -> None:
    written = load(tmp_path, default_text(uncommented=False))
    assert written == load_settings(root=tmp_path / "root", environ={})


def test_every_key_stands_in_the_default_file(tmp_path: Path) -> None:
    # the examples come before the tables in the file, so every line is a valid file of its own
    values = tomllib.loads(default_text(uncommented=True))

    def keys(table: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for name, value in table.items():
            found.add(prefix + name)
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    found |= keys(item, f"{prefix}{name}.")
        return found

    assert keys(values) == set(known_keys())
    load(tmp_path, default_text(uncommented=True))


def test_every_key_has_words_beside_or_above_it() -> None:
    before = ""
    for line in DEFAULT.read_text().splitlines():
        if re.match(r"^(# )?\w+ = ", line):
            rest = line.removeprefix("# ")
            assert "#" in rest or before.startswith("#"), line
        before = line


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("[receiver]\nprot = 104", "receiver.prot", "receiver.port"),
        ("[receivr]\nport = 104", "receivr", "receiver"),
        ("[filing]\nworker = 4", "filing.worker", "filing.workers"),
        (
            '[[watch]]\npath = "/x"\nsetle_seconds = 1',
            "watch.setle_seconds",
            "watch.settle_seconds",
        ),
        ('[[sources]]\ncalled = "X"', "sources.called", "sources.called_ae"),
        ('archive = "/x"', "archive", "paths.archive"),
    ],
)
def test_an_unknown_key_names_the_nearest(
    tmp_path: Path, text: str, key: str, nearest: str
) -> None:
    with pytest.raises(UnknownKey, match=re.escape(nearest)) as caught:
        load(tmp_path, text)
    assert (caught.value.key, caught.value.nearest) == (key, nearest)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("PETCT_INGEST_RECEIVER__PROT", "receiver.port"),
        ("PETCT_INGEST_RECEIVER_PORT", "receiver.port"),
        ("PETCT_INGEST_ROOTS", "root"),
    ],
)
def test_an_unknown_variable_names_the_nearest(tmp_path: Path, name: str, nearest: str) -> None:
    with pytest.raises(UnknownKey, match=re.escape(nearest)) as caught:
        load(tmp_path, **{name: "1"})
    assert name in str(caught.value)


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path: Path) -> None:
    path = tmp_path / "petct.toml"
    path.write_text("[receiver]\nport = 1\nhost = 'file'\nae_title = 'FILE'\n")
    environ = {"PETCT_INGEST_RECEIVER__PORT": "2", "PETCT_INGEST_RECEIVER__HOST": "env"}
    settings = load_settings(
        path, root=tmp_path, overrides={"receiver": {"port": 3}}, environ=environ
    )
    receiver = settings.receiver
    assert (receiver.port, receiver.host, receiver.ae_title) == (3, "env", "FILE")


def test_lists_come_from_the_environment_as_json(tmp_path: Path) -> None:
    settings = load(tmp_path, PETCT_INGEST_WATCH='[{"path": "/data/drop", "mode": "copy"}]')
    assert settings.watched == (WatchSettings(path=Path("/data/drop"), mode="copy"),)


def test_a_relative_root_counts_from_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "petct.toml").write_text('root = "../data"')
    settings = load_settings(folder / "petct.toml", environ={})
    assert settings.layout.root.resolve() == tmp_path / "data"


def test_relative_paths_count_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    settings = load(tmp_path, '[[watch]]\npath = "drop"\n[paths]\narchive = "tree"\nspool = "/s"')
    assert settings.layout.archive == tmp_path / "root" / "tree"
    assert settings.layout.spool == Path("/s")
    assert settings.layout.quarantine == tmp_path / "root" / "quarantine"
    assert settings.watched[0].path == tmp_path / "root" / "drop"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[receiver]\nport = 70000", "receiver.port"),
        ("[receiver]\nae_title = 'SEVENTEEN LETTERS'", "receiver.ae_title"),
        ("[receiver]\nae_title = 'a\\\\b'", "receiver.ae_title"),
        ("[receiver]\nae_title = ' A'", "receiver.ae_title"),
        ("[pairing]\ngrid = 'isotropic:0'", "pairing.grid"),
        ("[pairing]\ngrid = 'mr'", "pairing.grid"),
        ("[filing]\nduplicates = 'drop'", "filing.duplicates"),
        ("[completeness]\nquiet_seconds = -1", "completeness.quiet_seconds"),
        ("[[sources]]\npatient_id_prefix = 'x'", "sources.0"),
        ("receiver = 3", "receiver"),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(BadValue) as caught:
        load(tmp_path, text)
    assert caught.value.key == key
    assert key in str(caught.value)


@pytest.mark.parametrize("value", ["x", "[1"])
@pytest.mark.parametrize("name", ["PETCT_INGEST_RECEIVER__PORT", "PETCT_INGEST_WATCH"])
def test_a_bad_value_of_the_environment_is_an_error_of_ours(
    tmp_path: Path, name: str, value: str
) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, **{name: value})


@pytest.mark.parametrize("text", ["[receiver", "port ="])
def test_what_is_no_toml_is_said(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigUnreadable, match="TOML"):
        load(tmp_path, text)


def test_a_missing_file_or_root_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigUnreadable, match="cannot read"):
        load_settings(tmp_path / "none.toml", environ={})
    with pytest.raises(ConfigUnreadable, match="--root"):
        load_settings(environ={})


def test_the_first_source_whose_every_key_matches_counts(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        """
        [[sources]]
        calling_ae = "A"
        called_ae = "US"
        patient_id_prefix = "both-"
        [[sources]]
        calling_ae = "A"
        patient_id_prefix = "one-"
        [[sources]]
        folder = "/data/drop"
        patient_id_prefix = "drop-"
        [[sources]]
        folder = "inbox"
        patient_id_prefix = "inbox-"
        """,
    )

    def prefix(**source: str) -> str:
        empty = {"calling_ae": "", "called_ae": "", "address": "", "folder": ""}
        policy: SourcePolicy = settings.policy(**{**empty, **source})
        return policy.patient_id_prefix

    assert prefix(calling_ae="A", called_ae="US") == "both-"
    assert prefix(calling_ae="A", called_ae="X") == "one-"
    assert prefix(folder="/data/drop") == "drop-"
    assert prefix(folder=str(tmp_path / "root" / "inbox")) == "inbox-"
    assert prefix(calling_ae="B") == ""


@pytest.mark.parametrize("content", [b'root = "\xff\xfe"', b"a = " + b"[" * 5000])
def test_a_file_that_cannot_be_decoded_is_no_toml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.toml").write_bytes(content)
    with pytest.raises(ConfigUnreadable, match="no TOML"):
        load_settings(tmp_path / "bad.toml", environ={})
