"""/healthz and /readyz: what a load balancer and a person on call need to know."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filing_world import World, a_world
from web_serving import Served, served

from config.settings import Settings
from daemon.observing.readiness import check_readiness
from daemon.receiver.server import Receiver
from daemon.web.access.passwords import write_password

TOKEN = "a-token-of-more-than-twenty-characters"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    spool = {"minimum_free_mb": 1, "minimum_free_inodes": 1}
    with a_world(tmp_path / "root", spool=spool) as one:
        yield one


def ready(page: Served, **headers: str) -> tuple[int, dict]:
    page.app.state._state.pop("readiness", None)  # not what was kept for a second
    answer = page.client().get("/readyz", headers=headers)
    return answer.status_code, answer.json()


def not_well(told: dict) -> dict[str, str]:
    return {one["name"]: one["words"] for one in told["checks"] if not one["ok"]}


def test_a_page_that_lives_says_so(settings: Settings) -> None:
    with served(settings) as page:
        answer = page.client().get("/healthz")
    assert (answer.status_code, answer.text) == (200, "ok\n")


def test_ready_is_who_has_a_receiver_that_listens_and_stores_that_are_ours(world: World) -> None:
    with served(world.settings) as page:
        status, told = ready(page)
        assert (status, told["ready"]) == (503, False)
        assert list(not_well(told)) == ["receiver"]
        with Receiver(world.settings, lambda _: None) as receiver:
            status, told = ready(page)
            assert (status, told["ready"]) == (200, True)
            words = {one["name"]: one["words"] for one in told["checks"]}
            assert words["receiver"] == f"listens on port {receiver.port}"
            assert list(words) == ["receiver", "index", "spool", "archive", "disk"]
        assert ready(page)[0] == 503
        # what a killed receiver left behind deceives nobody
        (world.layout.run / "receiver.port").write_text("11112\n")
        assert "no receiver runs" in not_well(ready(page)[1])["receiver"]


@pytest.mark.parametrize("store", ["spool", "archive"])
def test_a_store_that_is_not_ours_is_named(world: World, store: str) -> None:
    folder = getattr(world.layout, store)
    identity = folder / ".petct" / "id"
    ours = identity.read_bytes()

    def words() -> dict[str, str]:
        checks = check_readiness(world.settings, lambda: world.index)
        return {one.name: one.words for one in checks if not one.ok and one.name != "receiver"}

    assert words() == {}
    identity.write_text("another\n")
    assert "is another one" in words()[store]
    identity.unlink()
    assert "is its disk mounted?" in words()[store]
    identity.write_bytes(ours)
    assert words() == {}


def test_a_disk_without_its_reserve_is_not_ready(world: World) -> None:
    spool = world.settings.spool.model_copy(update={"minimum_free_mb": 1 << 40})
    full = world.settings.model_copy(update={"spool": spool})
    (disk,) = (one for one in check_readiness(full, lambda: world.index) if one.name == "disk")
    assert not disk.ok
    assert "are kept in reserve" in disk.words
    (world.layout.run / "refusing-receiver").write_text(f"{os.getpid()}\nhas hiccups\n")
    (disk,) = (
        one for one in check_readiness(world.settings, lambda: world.index) if one.name == "disk"
    )
    assert disk.words == "the receiver takes nothing: has hiccups"


def test_without_an_index_nothing_is_known_to_be_ours(settings: Settings) -> None:
    with served(settings) as page:
        told = not_well(ready(page)[1])
    assert set(told) == {"receiver", "index", "spool", "archive"}
    assert "no index" in told["index"]


def test_elsewhere_anybody_learns_whether_and_only_who_has_the_token_what(
    world: World, tmp_path: Path
) -> None:
    write_password(tmp_path / "password", "open sesame, please")
    (tmp_path / "token").write_text(TOKEN)
    web = world.settings.web.model_copy(
        update={"password_file": tmp_path / "password", "token_file": tmp_path / "token"}
    )
    with served(world.settings.model_copy(update={"web": web})) as page:
        assert page.client().get("/healthz").text == "ok\n"
        assert ready(page) == (503, {"ready": False})
        assert ready(page, Authorization="Basic eA==") == (503, {"ready": False})
        assert "receiver" in not_well(ready(page, Authorization=f"Bearer {TOKEN}")[1])
        client = page.client()
        assert client.get("/readyz", headers={"Authorization": "Bearer no"}).status_code == 401
        assert client.get("/metrics").status_code == 401
        scraped = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert scraped.status_code == 200
        assert client.post("/readyz").status_code in (401, 403, 405)
