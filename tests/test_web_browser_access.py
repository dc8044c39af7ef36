"""The web page in a real browser: log-in, log-out, an upload, a retry."""

import base64
import os
import re
import zipfile
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import browser, page  # noqa: F401 - fixtures
from filing_world import small_instances
from installation import Installation
from running import wait_until
from web_serving import quick_hash

PASSWORD = "a few good words"
TRACE = os.environ.get("PETCT_SCREENSHOTS")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[tuple[str, Installation]]:
    """A running system whose page asks for a password, and the address of it."""
    one = Installation(tmp_path_factory.mktemp("page"))
    one.root.mkdir()
    (one.root / "web.password").write_text(quick_hash(PASSWORD))
    with one.run(
        PETCT_INGEST_WEB__ENABLED="true",
        PETCT_INGEST_WEB__PORT="0",
        PETCT_INGEST_WEB__PASSWORD_FILE="web.password",  # noqa: S106 - the name of a file
        PETCT_INGEST_SPOOL__MINIMUM_FREE_MB="1",
    ):
        bound = one.layout.run / "web.port"
        wait_until(bound.exists, 60, "the page")
        yield f"http://127.0.0.1:{bound.read_text().strip()}", one


def log_in(page, address: str, password: str = PASSWORD) -> None:  # noqa: F811
    page.goto(f"{address}/upload")
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


def look(page, name: str) -> None:  # noqa: F811
    if TRACE:
        page.screenshot(path=f"{TRACE}/{name}.png", full_page=True)


def test_log_in_wrong_password_and_log_out(address, page):  # noqa: F811
    where, _ = address
    log_in(page, where, "a few bad words")
    assert page.get_by_role("alert").inner_text() == "That is not the password."
    look(page, "wrong-password")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Upload").wait_for()  # where it wanted to go
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Password").wait_for()
    page.goto(f"{where}/upload")
    assert "/login" in page.url
    page.go_back()
    assert page.get_by_role("heading", name="Upload").count() == 0  # nothing was kept in a cache


def test_a_page_of_somebody_else_can_do_nothing(address, page):  # noqa: F811
    where, _ = address
    log_in(page, where)
    page.get_by_role("heading", name="Upload").wait_for()
    token = page.locator("input[name=csrf]").first.get_attribute("value")
    form = (
        f'<form method="post" action="{where}/logout"><input name="csrf" value="{token}">'
        f'<button>Win a prize</button></form><iframe src="{where}/"></iframe>'
    )
    page.route("http://evil.example/", lambda route: route.fulfill(
        body=form, content_type="text/html"))  # fmt: skip
    page.goto("http://evil.example/")
    assert "petct-ingest" not in page.frames[-1].locator("body").inner_text()
    page.get_by_role("button", name="Win a prize").click()
    page.wait_for_load_state()
    page.goto(f"{where}/upload")
    page.get_by_role("heading", name="Upload").wait_for()  # still logged in


def test_an_archive_is_uploaded_and_seen_filed(address, page, tmp_path):  # noqa: F811
    where, one = address
    packed = tmp_path / "study.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for number, content in enumerate(small_instances(tmp_path / "images", 5)):
            archive.writestr(f"Doe^John/{number}.dcm", content)
    log_in(page, where)
    page.get_by_label("Files or archives").set_input_files(packed)
    look(page, "upload")
    page.get_by_role("button", name="Upload").click()
    page.wait_for_url(re.compile("/upload/f[0-9]+-[0-9a-f]+$"))
    page.get_by_text("All of it is dealt with").wait_for(timeout=30_000)
    facts = page.locator("dl.facts").inner_text()
    look(page, "uploaded")
    assert re.search(r"filed\s+5", facts)
    assert re.search(r"archives unpacked\s+1", facts)
    assert len(one.filed()) == 5


def test_a_folder_is_dropped_on_the_page(address, page, tmp_path):  # noqa: F811
    where, one = address
    images = small_instances(tmp_path / "images", 2, patient=2)
    before = one.ask("select count(*) from instance")[0][0]
    log_in(page, where)
    page.locator("#drop").wait_for()  # the script listens
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, text] of files) {
                const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
                transfer.items.add(new File([bytes], name));
            }
            return transfer;
        }""",
        [[f"{n}.dcm", base64.b64encode(one).decode()] for n, one in enumerate(images)],
    )
    page.locator("#upload").dispatch_event("drop", {"dataTransfer": transfer})
    page.get_by_text("All of it is dealt with").wait_for(timeout=30_000)
    assert one.ask("select count(*) from instance")[0][0] == before + 2


def test_a_quarantined_file_is_retried_without_any_script(address, browser):  # noqa: F811
    where, one = address
    context = browser.new_context(java_script_enabled=False, locale="en-GB")
    context.set_default_timeout(20_000)
    plain = context.new_page()
    log_in(plain, where)
    rubbish = {"name": "rubbish.dcm", "mimeType": "", "buffer": b"no DICOM at all"}
    plain.get_by_label("Files or archives").set_input_files(rubbish)
    plain.get_by_role("button", name="Upload").click()
    wait_until(lambda: one.ask("select 1 from arrival where code = 'not-dicom'"), 30)
    plain.goto(f"{where}/quarantine")
    plain.get_by_role("link", name="Retry", exact=False).filter(has_not_text="all").first.click()
    plain.get_by_role("heading", name="File this again?").wait_for()
    look(plain, "retry")
    plain.get_by_role("button", name="Retry").click()
    plain.get_by_text("It waits to be filed again.").wait_for()
    wait_until(lambda: one.ask("select 1 from event where kind = 'retried'"), 10)
    ((details,),) = one.ask("select details from event where kind = 'retried'")
    assert '"by": "web 127.0.0.1"' in details
    context.close()


def test_everybody_can_use_what_is_here(address, page):  # noqa: F811
    where, one = address
    found = {}

    def judge(name: str) -> None:
        look(page, name)
        found[name] = [
            f"{one['id']}: {one['help']}"
            for one in Axe().run(page).response["violations"]
            if one["impact"] in ("serious", "critical")
        ]

    page.goto(f"{where}/login")
    judge("log-in")
    log_in(page, where)
    page.get_by_role("heading", name="Upload").wait_for()
    judge("upload-empty")
    (one.inbox / "rubbish").write_bytes(b"no DICOM either")
    aside = "select entry from arrival where outcome = 'quarantined' limit 1"
    ((entry,),) = wait_until(lambda: one.ask(aside), 30, "a file in quarantine")
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{where}/quarantine/{entry}/drop")
    page.get_by_role("heading", name="Delete this file for good?").wait_for()
    judge("drop-phone")
    page.goto(f"{where}/upload")
    judge("upload-phone")
    assert not any(found.values()), found
