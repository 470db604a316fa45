"""One browser and two pages for all tests of the page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser, chromium
from report.page_fixture import LLAMA, Page, make_page
from system_programs import program


@pytest.fixture(scope="session")
def chrome() -> Iterator[Browser]:
    with browser(program("chromium", package="Debian: chromium", found=chromium())) as found:
        yield found


@pytest.fixture(scope="session")
def on_a_card(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A model that fits a card at some positions, in part at others, and not at all at the last."""
    return make_page(tmp_path_factory.mktemp("page") / "card.html", LLAMA, "rtx3060+24GB")


@pytest.fixture(scope="session")
def on_a_cpu(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return make_page(tmp_path_factory.mktemp("page") / "cpu.html", "Qwen/Qwen3-8B", "cpu+16GB")


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where pictures of the tests are kept."""
    root = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("QUANTPLAN_SCREENSHOTS", root / "build" / "page"))
