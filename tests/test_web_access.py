"""Who gets to see the web page, and whose requests it takes."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import threading
from pathlib import Path

import httpx
import pytest
from conftest import PROJECT
from pydantic import ValidationError
from running import petct, wait_until
from web_serving import Served, quick_hash, served

from config.settings import Settings, load_settings
from config.tables.telling import WebSettings
from daemon.errors import AccessUnusable
from daemon.web.access import csrf, limiting, sessions
from daemon.web.access.assembling import access_middleware
from daemon.web.access.hosts import is_ours
from daemon.web.access.limiting import LoginLimits
from daemon.web.access.passwords import HashedPassword, read_password, why_unfit
from daemon.web.access.sessions import Sessions
from daemon.web.serving import run_web
from workers.spool.notes import take_notes

PASSWORD = "a few good words"
TOKEN = "t0ken-for-the-machines-alone"
BROWSER = {"Accept": "text/html"}


def with_web(settings: Settings, **web: object) -> Settings:
    changed = {name: getattr(settings.web, name) for name in WebSettings.model_fields} | web
    return settings.model_copy(update={"web": WebSettings(**changed)})


@pytest.fixture
def guarded(settings: Settings) -> Settings:
    """A page that asks for a password and knows a token."""
    (settings.root / "web.password").write_text(quick_hash(PASSWORD))
    (settings.root / "web.token").write_text(TOKEN + "\n")
    return with_web(settings, password_file=Path("web.password"), token_file=Path("web.token"))


def kinds(settings: Settings) -> list[str]:
    return [note.kind for note in take_notes(settings.layout)]


# without a password -------------------------------------------------------------------------------


def test_on_loopback_the_page_is_open_and_tells_the_browser_to_keep_nothing(settings):
    with served(settings) as page:
        answer = page.client().get("/upload")
        style = page.client().get("/static/page.css")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert style.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "web",
    [{"host": "0.0.0.0"}, {"host": "10.0.0.7"}, {"behind_tls": True}, {"allow_hosts": ("petct",)}],
)
def test_a_page_that_others_reach_must_have_a_password(web):
    with pytest.raises(ValidationError, match=r"web\.password_file"):
        WebSettings(**web)
    assert WebSettings(**web, password_file=Path("web.password")).password_file


def test_a_password_that_cannot_be_read_stops_the_page_at_its_start(guarded):
    path = guarded.root / "web.password"
    for words in ("", "plain text", "$scrypt$ln=30,r=8,p=1$" + "A" * 43 + "$" + "A" * 43):
        path.write_text(words)
        with pytest.raises(AccessUnusable, match=r"web\.password_file") as told:
            access_middleware(guarded)
        assert str(guarded.root) not in str(told.value)
    path.unlink()
    with pytest.raises(AccessUnusable, match="not there"):
        access_middleware(guarded)
    path.write_text(quick_hash(PASSWORD))
    (guarded.root / "web.token").write_text("short")
    with pytest.raises(AccessUnusable, match=r"web\.token_file"):
        access_middleware(guarded)


@pytest.mark.parametrize(("behind_tls", "warns"), [(False, True), (True, False)])
def test_a_password_that_crosses_the_network_in_the_clear_is_warned_of(
    guarded, caplog, behind_tls, warns
):
    caplog.set_level("INFO")
    settings = with_web(guarded, host="0.0.0.0", port=0, behind_tls=behind_tls)
    stop = threading.Event()
    role = threading.Thread(target=run_web, args=(settings, stop))
    role.start()
    try:
        wait_until(lambda: "page-listens" in caplog.text, 20, "the page listens")
    finally:
        stop.set()
        role.join(20)
    assert ("page-unencrypted" in caplog.text) == warns


# host names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "ours"),
    [
        ("127.0.0.1:8050", True),
        ("localhost", True),
        ("LOCALHOST.:8050", True),
        ("[::1]:8050", True),
        ("petct.example.org", True),
        ("PETCT.example.org:443", True),
        ("10.0.0.7:8050", True),  # the address it was reached at
        ("10.0.0.8:8050", False),
        ("evil.example", False),
        ("petct.example.org.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost:8050@evil.example", False),
        ("localhost evil", False),
        ("", False),
        ("[::1", False),
    ],
)
def test_only_our_own_names_are_answered(header, ours):
    web = WebSettings(allow_hosts=("petct.example.org",), password_file=Path("p"))
    assert is_ours(header, web, reached="10.0.0.7") is ours


def test_a_page_is_not_shown_under_a_name_that_somebody_points_to_us(settings):
    with served(settings) as page:
        for host in ("evil.example", "evil.example:80", "127.0.0.1.nip.io"):
            answer = page.client().get("/", headers={"Host": host})
            assert answer.status_code == 400
            assert "allow_hosts" in answer.text
        assert page.client().get("/upload", headers={"Host": "localhost:1"}).status_code == 200


# forms --------------------------------------------------------------------------------------------


def send_login(page: Served, visitor, headers: dict[str, str], **fields: str) -> httpx.Response:
    return visitor.post("/login", data={"password": PASSWORD, **fields}, headers=headers)


def test_a_form_is_taken_from_our_own_page_alone(guarded):
    with served(guarded) as page:
        visitor, other = page.client(), page.client()
        token, foreign = visitor.token("/login"), other.token("/login")
        own = {"Origin": visitor.origin, "Sec-Fetch-Site": "same-origin"}
        wrong = [
            send_login(page, visitor, own),
            send_login(page, visitor, own, csrf="0" * 64),
            send_login(page, visitor, own, csrf=foreign),
            send_login(page, page.client(), own, csrf=token),  # without the cookie
            send_login(page, visitor, own | {"Origin": "http://evil.example"}, csrf=token),
            send_login(page, visitor, own | {"Origin": "null"}, csrf=token),
            send_login(page, visitor, own | {"Origin": "https://127.0.0.1"}, csrf=token),
            send_login(page, visitor, own | {"Origin": "http://["}, csrf=token),
            send_login(page, visitor, own | {"Sec-Fetch-Site": "same-site"}, csrf=token),
            send_login(page, visitor, own | {"Sec-Fetch-Site": "cross-site"}, csrf=token),
            visitor.post("/login", content=b"{}", headers=own | {"Content-Type": "text/plain"}),
            visitor.post("/login", files={"csrf": token}, headers=own),  # multipart is for uploads
            visitor.post("/login", data={"x": "y" * 70_000, "csrf": token}, headers=own),
            visitor.post("/login", data={"x": ["y"] * 200, "csrf": token}, headers=own),
        ]
        assert [answer.status_code for answer in wrong] == [403] * len(wrong)
        assert "not come from our own page" in wrong[0].text
        assert send_login(page, visitor, own, csrf=token).status_code == 303
    assert "web-request-refused" in kinds(guarded)


def test_a_form_that_drips_in_is_not_waited_for(settings, monkeypatch):
    monkeypatch.setattr(csrf, "_FORM_SECONDS", 0.2)
    with served(settings) as page, socket.create_connection(("127.0.0.1", page.port), 20) as slow:
        slow.sendall(
            b"POST /logout HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 50\r\n\r\ncsrf="
        )
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_no_other_method_changes_anything(settings):
    with served(settings) as page:
        visitor = page.client()
        headers = {"X-CSRF-Token": visitor.token("/upload"), "Origin": visitor.origin}
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            assert visitor.request(method, "/upload", headers=headers).status_code == 405
            assert visitor.request(method, "/upload").status_code == 403


# log-in -------------------------------------------------------------------------------------------


def test_who_is_not_logged_in_sees_the_log_in_alone(guarded):
    with served(guarded) as page:
        visitor = page.client()
        for path in ("/", "/studies", "/held/1/force", "/upload", "/events", "/nothing"):
            answer = visitor.get(path, headers=BROWSER)
            assert (answer.status_code, answer.headers["location"]) == (303, f"/login?next={path}")
            assert visitor.get(path).status_code == 401
            assert visitor.post(path).status_code == 401
        assert visitor.get("/static/page.css").status_code == 200
        assert visitor.get("/login").status_code == 200


def test_a_log_in_gives_a_new_cookie_and_a_log_out_ends_what_it_opened(guarded):
    with served(guarded) as page:
        visitor = page.client()
        visitor.get("/login")
        planted = visitor.cookies["petct"]
        assert "That is not the password" in visitor.log_in("a few bad words").text
        answer = visitor.log_in(PASSWORD, next="/upload")
        assert answer.headers["location"] == "/upload"
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"} <= set(cookie.split("; "))
        assert visitor.cookies["petct"] != planted
        assert visitor.get("/upload").status_code == 200
        thief = page.client(cookies={"petct": planted})
        assert thief.get("/upload").status_code == 401
        stolen = page.client(cookies={"petct": visitor.cookies["petct"]})
        assert stolen.get("/upload").status_code == 200
        assert visitor.submit("/logout", "/upload").status_code == 303
        assert stolen.get("/upload").status_code == 401
        assert visitor.get("/upload").status_code == 401
    assert {"web-login", "web-login-failed", "web-logout"} <= set(kinds(guarded))


def test_another_password_ends_every_session(guarded):
    with served(guarded) as page:
        visitor = page.client()
        assert visitor.log_in(PASSWORD).status_code == 303
        assert visitor.get("/upload").status_code == 200
        (guarded.root / "web.password").write_text(quick_hash("other good words"))
        assert visitor.get("/upload").status_code == 401
        assert visitor.log_in(PASSWORD).status_code == 403
        assert visitor.log_in("other good words").status_code == 303
        (guarded.root / "web.password").unlink()
        assert visitor.get("/upload").status_code == 401
        assert visitor.log_in("other good words").status_code == 503


def test_a_log_in_leads_nowhere_else(guarded):
    with served(guarded) as page:
        for wanted in ("//evil.example", "https://evil.example", "/\\evil.example",
                       "/\t/evil.example", "evil", "/ä"):  # fmt: skip
            assert page.client().log_in(PASSWORD, next=wanted).headers["location"] == "/"


def test_a_link_of_another_site_asks_again_instead_of_forgetting_the_session(guarded):
    # a strict cookie does not come along with it, and the log-in would replace it
    with served(guarded) as page:
        visitor, headers = page.client(), BROWSER | {"Sec-Fetch-Site": "cross-site"}
        answer = visitor.get("/held", headers=headers)
        away = visitor.get(f"{visitor.origin}//evil.example/%2F", headers=headers)
    assert answer.status_code == 200
    assert 'content="0; url=/held"' in answer.text
    assert "set-cookie" not in answer.headers
    assert 'content="0; url=/evil.example//"' in away.text


def test_behind_tls_the_cookie_is_for_this_host_and_for_https(guarded):
    with served(with_web(guarded, behind_tls=True)) as page:
        cookie = page.client().get("/login").headers["set-cookie"]
    assert cookie.startswith("__Host-petct=")
    assert {"Secure", "Path=/", "HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))


def test_who_guesses_waits_longer_and_longer_and_the_right_password_waits_too(guarded):
    with served(guarded) as page:
        visitor = page.client()
        tries = [visitor.log_in(f"guess number {n}") for n in range(limiting.FREE_TRIES + 1)]
        assert [one.status_code for one in tries] == [403] * limiting.FREE_TRIES + [429]
        assert int(tries[-1].headers["retry-after"]) >= 1
        assert visitor.log_in(PASSWORD).status_code == 429
        assert visitor.get("/healthz", headers=bearer(TOKEN)).status_code == 200
        assert visitor.log_in(PASSWORD).status_code == 429, "a scrape forgave what was guessed"
        strangers = [visitor.get("/metrics", headers=bearer("x" * 30)) for _ in tries]
        assert [one.status_code for one in strangers] == [401] * limiting.FREE_TRIES + [429]
    assert "web-login-delayed" in kinds(guarded)


# the token for machines ---------------------------------------------------------------------------


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_the_token_opens_what_machines_ask_and_nothing_else(guarded):
    with served(guarded) as page:
        machine = page.client(headers=bearer(TOKEN))
        assert machine.get("/healthz").status_code == 200
        assert machine.get("/metrics").status_code == 200
        for path in ("/", "/studies", "/upload", "/static/..%2fmetrics", "/metrics/"):
            assert machine.get(path).status_code in (401, 404)
        assert machine.post("/metrics").status_code == 401
        wrong = page.client(headers=bearer(TOKEN[:-1])).get("/metrics")
        assert wrong.status_code == 401
        assert "Bearer" in wrong.headers["www-authenticate"]
        (guarded.root / "web.token").write_text("another token for machines")
        assert machine.get("/healthz").status_code == 401


# what decides -------------------------------------------------------------------------------------


def test_a_wait_doubles_up_to_a_quarter_of_an_hour_and_is_forgotten_after_a_quiet_one():
    limits, now, waits = LoginLimits(), 1000.0, []
    for _ in range(limiting.FREE_TRIES):
        assert limits.try_now("10.0.0.1", now) == 0
    for _ in range(14):
        waits.append(limits.try_now("10.0.0.1", now))
        now += waits[-1]
        assert limits.try_now("10.0.0.1", now) == 0
    longest = limiting.LONGEST_WAIT_SECONDS
    doubled = [limiting.FIRST_WAIT_SECONDS * 2**n for n in range(14)]
    assert waits == pytest.approx([min(one, longest) for one in doubled])
    assert limits.try_now("10.0.0.1", now + limiting.QUIET_SECONDS) == 0
    assert limits.try_now("10.0.0.1", now + limiting.QUIET_SECONDS) == 0


def test_many_addresses_are_no_quicker_than_one_and_hold_up_nobody_who_was_here():
    limits = LoginLimits()
    limits.try_now("192.168.0.9", 0.0)
    limits.succeeded("192.168.0.9")
    tried = sum(limits.try_now(f"10.0.{n // 250}.{n % 250}", n / 100) == 0 for n in range(6000))
    assert tried == limiting.ALL_TRIES + 60 / limiting.ALL_AGAIN_SECONDS - 1
    assert limits.try_now("10.9.9.9", 59.99) > 0
    assert limits.try_now("192.168.0.9", 59.99) == 0


def test_one_line_of_ipv6_is_one_address():
    limits = LoginLimits()
    for n in range(limiting.FREE_TRIES):
        assert limits.try_now(f"2001:db8::{n:x}", 0.0) == 0
    assert limits.try_now("2001:db8::ffff", 0.0) > 0
    assert limits.try_now("2001:db8:0:1::1", 0.0) == 0


def test_a_session_ends_in_time_and_the_oldest_makes_room(monkeypatch):
    monkeypatch.setattr(sessions, "MOST_SESSIONS", 3)
    known = Sessions(lifetime_seconds=100)
    tokens = [known.begin("p", float(n)) for n in range(4)]
    assert [known.holds(token, "p", 50.0) for token in tokens] == [False, True, True, True]
    assert not known.holds(tokens[1], "other", 50.0)
    assert not known.holds(tokens[1], "p", 101.0)
    assert known.holds(tokens[2], "p", 101.0)
    assert known.end(tokens[3])
    assert not known.end(tokens[3])
    assert not known.holds(tokens[3], "p", 50.0)


def test_a_password_is_kept_as_a_hash_of_the_strength_that_owasp_asks():
    hashed = HashedPassword.of("Ångström and more")
    assert str(hashed).startswith("$scrypt$ln=15,r=8,p=3$")
    assert str(HashedPassword.parse(str(hashed))) == str(hashed)
    assert hashed.fits("A\u030angstro\u0308m and more")  # typed in parts, the same
    assert not hashed.fits("Angstrom and more")
    assert dataclasses.replace(hashed, salt=b"x" * 32).fingerprint != hashed.fingerprint
    assert why_unfit("short")
    assert why_unfit("aaaaaaaaaaaaaaaa")
    assert why_unfit(PASSWORD) is None


def test_the_command_line_sets_the_password(tmp_path):
    def run(password: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = petct("web", "password", "--root", tmp_path, "--stdin", *options)
        return subprocess.run(
            command, input=password + "\n", capture_output=True, text=True, timeout=60, check=False
        )

    assert run("short").returncode == 2
    assert not (tmp_path / "web.password").exists()
    told = run(PASSWORD)
    assert told.returncode == 0, told.stderr
    assert 'password_file = "web.password"' in told.stdout
    assert PASSWORD not in told.stdout
    assert os.stat(tmp_path / "web.password").st_mode & 0o777 == 0o600
    assert read_password(tmp_path / "web.password").fits(PASSWORD)
    told = run(PASSWORD, "--json")
    assert json.loads(told.stdout) == {
        "written": str(tmp_path / "web.password"),
        "asked_for": False,
    }


def test_neither_password_nor_token_nor_cookie_is_in_logs_or_notes(guarded, caplog):
    caplog.set_level("DEBUG")
    with served(guarded) as page:
        visitor = page.client()
        visitor.log_in("my wrong guess")
        visitor.log_in(PASSWORD)
        page.client(headers=bearer("my wrong token")).get("/metrics")
        secret = visitor.cookies["petct"]
        wait_until(lambda: "web-token-refused" in kinds(guarded), 10, "the notes")
    told = json.dumps([dataclasses.asdict(note) for note in take_notes(guarded.layout)])
    told += "".join(
        f"{record.getMessage()} {record.__dict__}"
        for record in caplog.records
        if record.name.startswith(("daemon", "workers", "uvicorn"))
    )
    assert "web-login-failed" in told
    for words in ("my wrong guess", "my wrong token", PASSWORD, TOKEN, secret):
        assert words not in told


def test_the_worked_example_of_the_paper_is_a_configuration(tmp_path):
    paper = (PROJECT / "docs" / "security.md").read_text()
    page = paper[paper.index("## Web page") : paper.index("## Files")]
    (example,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "c.toml").write_text(example)
    web = load_settings(tmp_path / "c.toml", root=tmp_path, environ={}).web
    assert not web.is_loopback
