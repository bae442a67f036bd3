"""Headless Chromium for pages, and a page that reports every console message and request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="the page tests need playwright (extra `test`)")
    if CHROMIUM is None:
        pytest.skip("the page tests need Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield running
        running.close()


class Watched:
    """A page with everything it said and asked for."""

    def __init__(self, browser: Any, **settings: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 900}, **settings)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.said.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda e: self.said.append(f"error: {e}"))
        self.page.on("request", lambda r: self.asked.append(r.url))


@pytest.fixture
def watched(browser: Any) -> Iterator[Any]:
    """Opens watched pages; fails where one logged an error."""
    opened: list[Watched] = []

    def open_page(url: str, **settings: Any) -> Watched:
        seen = Watched(browser, **settings)
        opened.append(seen)
        seen.page.goto(url)
        return seen

    yield open_page
    for seen in opened:
        seen.page.close()
