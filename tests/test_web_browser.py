"""The page in a real browser: it follows a study by itself, a keyboard is enough, everybody can
read it.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsing import browser, page  # noqa: F401 - fixtures
from filing_world import World, encoded
from installation import Installation
from running import wait_until
from web_serving import served
from web_world import MARKUP, fill

from workers.phantom.study import PhantomSpec, make_study

PAGES = ("/", "/studies", "/studies/1", "/studies/2", "/held", "/held/2/force", "/held/2/choose",
         "/quarantine", "/quarantine/retry-all", "/sources", "/settings", "/upload",
         "/nowhere")  # fmt: skip
RULES = {
    "light": {"resultTypes": ["violations"]},
    "dark": {"resultTypes": ["violations"], "runOnly": ["color-contrast"]},
}
"""Only colours differ between the two."""
NARROW = {"width": 390, "height": 844}


def written(folder: Path, number: int, name: str, **changes: str) -> list[Path]:
    """One series of a small phantom study, in files."""
    part = make_study(PhantomSpec(size="tiny", patient_number=number)).named(name)
    (folder / str(number) / name).mkdir(parents=True)
    files = []
    for one in range(part.count):
        dataset = part.dataset(one)
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
        files.append(folder / str(number) / name / f"{one}.dcm")
        files[-1].write_bytes(encoded(dataset))
    return files


@pytest.fixture(scope="module")
def running_one(tmp_path_factory) -> Iterator[tuple[str, Installation]]:
    """A running system, and the address of its page."""
    one = Installation(tmp_path_factory.mktemp("page"))
    with one.run(
        PETCT_INGEST_WEB__ENABLED="true",
        PETCT_INGEST_WEB__PORT="0",
        PETCT_INGEST_COMPLETENESS__QUIET_SECONDS="2",
        PETCT_INGEST_SPOOL__MINIMUM_FREE_MB="1",
    ):
        bound = one.layout.run / "web.port"
        wait_until(bound.exists, 60, "the page")
        yield f"http://127.0.0.1:{bound.read_text().strip()}", one


def send(installation: Installation, files: list[Path]) -> None:
    with installation.sending(files) as sender:
        assert sender.process.wait(60) == 0, sender.stderr


def test_a_study_is_seen_to_arrive_to_be_complete_and_to_pair(running_one, page, tmp_path):  # noqa: F811
    address, installation = running_one
    page.set_default_timeout(60_000)
    page.goto(address)
    page.get_by_text("Nothing was filed in the last 15 minutes.").wait_for()
    page.get_by_text("This page follows what happens.").wait_for()
    page.evaluate("window.same = true")
    send(installation, written(tmp_path, 1, "PET AC", SeriesDescription=MARKUP))
    arriving = page.locator("#arriving")
    arriving.get_by_text("pet ac").wait_for()
    assert arriving.get_by_text("pair ready").count() == 0
    assert page.evaluate("window.same"), "the page was loaded anew"

    page.get_by_role("link", name="PET/CT phantom").click()
    page.get_by_text("This page follows what happens.").wait_for()
    page.evaluate("window.same = true")
    assert page.locator("#series").get_by_text(MARKUP).first.is_visible()
    send(installation, written(tmp_path, 1, "CT IMAGES"))
    page.locator("#series tbody tr").nth(1).get_by_text("complete").wait_for()
    page.locator("#pair").get_by_text("pair ready").wait_for()
    picture = page.locator("#pair img")
    wait_until(lambda: picture.evaluate("image => image.naturalWidth") > 500, 20, "the picture")
    assert page.locator("#timeline").get_by_text("The pair is ready: revision 1").count() == 1
    assert page.evaluate("window.same"), "the page was loaded anew"


def test_a_held_study_is_forced_with_the_keyboard_alone(running_one, page, tmp_path):  # noqa: F811
    address, installation = running_one
    page.set_default_timeout(60_000)
    page.goto(f"{address}/held")
    page.get_by_text("Nothing is held.").wait_for()
    files = written(tmp_path, 2, "PET AC") + written(tmp_path, 2, "CT IMAGES", PatientID="ANOTHER")
    send(installation, files)
    page.get_by_role("link", name="Force the pair").wait_for()  # it came by itself
    press_until(page, "Force the pair")
    page.keyboard.press("Enter")
    page.wait_for_url("**/held/*/force")
    press_until(page, "Make the pair")
    page.keyboard.press("Enter")
    page.get_by_role("status").first.wait_for()
    page.goto(f"{address}/studies?state=ready")
    page.get_by_role("link", name="PET/CT phantom").nth(1).wait_for()
    page.goto(f"{address}/held")
    page.get_by_text("Nothing is held.").wait_for()


def press_until(page, words: str) -> None:  # noqa: F811
    """Press Tab until what is focused, and visibly so, has these words."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText").strip() == words:
            outline = "getComputedStyle(document.activeElement).outlineStyle"
            assert page.evaluate(outline) == "solid"
            return
    pytest.fail(f"no Tab leads to {words!r}")


def test_the_first_tab_skips_to_the_content(running_one, page):  # noqa: F811
    page.goto(f"{running_one[0]}/studies")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    with closing(fill(tmp_path_factory.mktemp("shown") / "root")) as world:
        yield world


@pytest.mark.parametrize("scheme", RULES)
def test_everybody_can_read_every_page_on_any_screen(browser, world, scheme):  # noqa: F811
    with (
        served(world.settings) as site,
        closing(browser.new_context(color_scheme=scheme)) as context,
    ):
        one = context.new_page()
        for path in PAGES:
            one.goto(site.address + path)
            for size in ({"width": 1280, "height": 900}, NARROW):
                one.set_viewport_size(size)
                wide = one.evaluate("document.documentElement.scrollWidth")
                assert wide <= size["width"], f"{path} is {wide} wide on {size['width']}"
            serious = [
                (found["id"], [node["html"][:200] for node in found["nodes"]])
                for found in Axe().run(one, options=RULES[scheme]).response["violations"]
                if found["impact"] in ("serious", "critical")
            ]
            assert not serious, f"{path}: {serious}"


def test_a_tab_that_nobody_sees_takes_no_connection_from_those_that_are_seen(world, page):  # noqa: F811
    def hide(hidden: bool) -> None:
        define = "value => Object.defineProperty(document, 'hidden', {value, configurable: true})"
        page.evaluate(define, hidden)
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    with served(world.settings) as site:
        pulse = site.app.state.pulse
        page.goto(site.address)
        wait_until(lambda: pulse.streams == 1, 10, "the page listens")
        hide(True)
        wait_until(lambda: pulse.streams == 0, 10, "the hidden page lets go")
        hide(False)
        wait_until(lambda: pulse.streams == 1, 10, "the page listens again")
        page.goto("about:blank")


def test_without_a_script_every_page_reads_the_same(browser, world):  # noqa: F811
    with (
        served(world.settings) as site,
        closing(browser.new_context(java_script_enabled=False)) as context,
    ):
        one = context.new_page()
        one.goto(f"{site.address}/studies")
        one.get_by_label("Patient ID, accession").fill("HELD*")
        one.get_by_role("button", name="Search").click()
        assert one.locator("tbody tr").count() == 1
        one.get_by_role("link", name="PET/CT phantom").click()
        assert one.locator("#pair").get_by_text("two PatientIDs").count() == 1
