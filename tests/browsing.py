"""A real browser for tests of the web page: Debian's Chromium, driven by Playwright."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import missing

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",  # containers forbid what the sandbox needs
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """One headless Chromium for all tests of a module."""
    if not os.access(CHROMIUM, os.X_OK):
        missing(f"no Chromium: {CHROMIUM}")
    from playwright.sync_api import sync_playwright

    manager = sync_playwright()
    with manager as playwright, ThreadPoolExecutor(1, "playwright") as executor:
        # its helper thread begins here: within a test it would pass for one that the test leaks
        executor.submit(int).result()
        manager._loop.call_soon(manager._loop.set_default_executor, executor)
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield one
        one.close()


@pytest.fixture
def page(browser) -> Iterator[object]:
    """A fresh page: no cookies, no cache; what fails in its scripts fails the test."""
    context = browser.new_context(locale="en-GB", timezone_id="UTC")
    context.set_default_timeout(10_000)
    one = context.new_page()
    errors: list[str] = []
    one.on("pageerror", lambda error: errors.append(str(error)))
    yield one
    context.close()
    assert not errors, errors
