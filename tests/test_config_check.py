"""`config check`: every setting with its place, and what cannot work together."""

import json
import os
import subprocess

import pytest
from running import petct

from config.places import lines_of, variable_of
from config.problems import find_problems
from config.settings import known_keys, load_settings


def problems_of(tmp_path, *, devices=None, **given):
    settings = load_settings(root=tmp_path, overrides=given, environ={})
    found = find_problems(
        settings,
        lambda path: None if path.name.startswith("there") else "not there",
        lambda folder: (devices or {}).get(folder.name, 1),
    )
    return {(one.key, one.fails) for one in found}


def test_nothing_is_said_of_the_defaults(tmp_path):
    assert problems_of(tmp_path) == set()


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"paths": {"inbox": "archive/in"}}, "paths.inbox"),
        ({"paths": {"spool": "archive"}}, "paths.archive"),
        ({"paths": {"quarantine": "archive/bad"}}, "paths.quarantine"),
        ({"watch": [{"path": "spool/ready"}]}, "watch[0].path"),
        ({"watch": [{"path": "/"}]}, "watch[0].path"),
        ({"watch": [{"path": "in"}, {"path": "in"}]}, "watch[1].path"),
        ({"web": {"token_file": "no.token"}}, "web.token_file"),
        ({"web": {"port": 11112}}, "web.port"),
    ],
    ids=str,
)
def test_what_cannot_work_is_named_by_its_setting(tmp_path, given, key):
    assert problems_of(tmp_path, **given) == {(key, True)}


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"devices": {"archive": 2}}, "paths.archive"),
        ({"devices": {"inbox": 2}}, "paths.inbox"),
        ({"receiver": {"host": "0.0.0.0"}}, "receiver.host"),
    ],
    ids=str,
)
def test_what_works_and_costs_something_is_a_warning(tmp_path, given, key):
    assert problems_of(tmp_path, **given) == {(key, False)}


def test_files_that_are_there_and_a_guarded_port_are_no_problem(tmp_path):
    receiver = {"host": "0.0.0.0", "allow_addresses": ["10.0.0.0/24"]}
    assert problems_of(tmp_path, web={"token_file": "there.token"}, receiver=receiver) == set()


def test_keys_are_found_in_their_lines():
    text = (
        'root = "x"\n\n[receiver]\n# port = 1\nport = 104\n[receiver.tls]\nkey = "k"\n'
        '[[watch]]\npath = "a"\n'
    )
    assert lines_of(text) == {
        "root": 1, "receiver": 3, "receiver.port": 5, "receiver.tls": 6, "receiver.tls.key": 7,
        "watch": 8, "watch.path": 9,
    }  # fmt: skip
    assert variable_of("receiver.tls.key") == "PETCT_INGEST_RECEIVER__TLS__KEY"


def test_the_command_names_each_setting_and_its_place_and_hides_secrets(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        'root = "root"\n[receiver]\nport = 104\n[redis]\nurl = "redis://:geheim@q.example:6379/0"\n'
        '[paths]\ninbox = "archive/in"\n'
    )
    environment = os.environ | {"PETCT_INGEST_LOGGING__LEVEL": "ERROR", "COLUMNS": "80"}

    def checked(*options: str) -> str:
        done = subprocess.run(
            petct("config", "check", "--config", config, *options), env=environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 3, done.stderr
        assert "geheim" not in done.stdout + done.stderr
        return done.stdout

    found = json.loads(checked("--json"))
    by = {one["key"]: one for one in found["settings"]}
    tables = {key for key in known_keys() if any(one.startswith(f"{key}.") for one in known_keys())}
    of_several = {key for key in known_keys() if key.startswith(("watch.", "sources."))}
    of_several |= {key for key in known_keys() if key.startswith("commitment.peers.")}
    assert set(known_keys()) - tables - of_several <= set(by)
    port, level, ae = by["receiver.port"], by["logging.level"], by["receiver.ae_title"]
    assert (port["value"], port["default"], port["place"]) == ("104", "11112", f"{config}:3")
    assert (level["origin"], level["place"]) == ("environment", "PETCT_INGEST_LOGGING__LEVEL")
    assert (ae["origin"], ae["meaning"] != "") == ("default", True)
    assert found["problems"][0]["key"] == "paths.inbox"
    words = checked()
    assert "receiver.port = 104" in words
    assert "default 11112" in words
