"""The page in a real browser: it loads nothing, says nothing on the console, and is readable on a
desk and on a phone, by day and by night."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from qconvert.runtimes.page.page import page as whole_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
INSTALL = "no browser: apt-get install chromium, or set QCONVERT_BROWSER to the path of one"
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DESK, PHONE = (1280, 800), (390, 844)
SIZES = (DESK, (1000, 800), (700, 800), PHONE, (360, 740))
REPORTS: dict[str, Callable[[Any], list[Any]]] = {
    "passed": lambda made: [made.CHECK],
    "failed": lambda made: [made.FAILED],
    "undecided": lambda made: [made.UNDECIDED],
    "alone": lambda made: [made.ALONE],
    "hostile": lambda made: [made.hostile()],
    "several": lambda made: [made.CHECK, made.FAILED, made.UNDECIDED, made.hostile()],
}

TOO_SMALL = """() => [...document.querySelectorAll('body *')]
  .filter(one => one.checkVisibility({visibilityProperty: true}))
  .filter(one => [...one.childNodes].some(child => child.nodeType === 3 && child.data.trim()))
  .filter(one => parseFloat(getComputedStyle(one).fontSize) < 12)
  .map(one => one.outerHTML.slice(0, 200))"""
PICTURES = """() => [...document.querySelectorAll('.plot > svg')]
  .filter(one => one.checkVisibility()).map(svg => {
    const box = svg.getBoundingClientRect();
    const card = svg.closest('.card, .gate').getBoundingClientRect();
    const words = [...svg.querySelectorAll('text')].filter(one => one.checkVisibility())
      .map(one => [one.textContent, one.getBoundingClientRect()]);
    const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 5;
    return {name: svg.querySelector('title').textContent, width: box.width, height: box.height,
      outside: words.filter(([, one]) => one.left < card.left - 1 || one.right > card.right + 1
        || one.bottom > card.bottom + 1).map(([word]) => word),
      over: words.flatMap(([word, one], at) => words.slice(at + 1)
        .filter(([, other]) => meet(one, other)).map(([other]) => [word, other]))}})"""
CONTRAST = """() => { const read = colour => { const canvas = new OffscreenCanvas(1, 1)
      .getContext('2d'); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
      return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)};
    const light = rgb => { const [r, g, b] = rgb.map(v => v / 255).map(
      v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
      return .2126 * r + .7152 * g + .0722 * b};
    const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
      return (x + .05) / (y + .05)};
    const card = read(getComputedStyle(document.querySelector('.card:not(.hero)')).backgroundColor);
    return [...document.querySelectorAll('h2, td, th, .about, .span, .word, .stage, svg text')]
      .filter(one => one.checkVisibility()).map(one => { const style = getComputedStyle(one);
        return [one.textContent.slice(0, 40),
          ratio(read(one.tagName === 'text' ? style.fill : style.color), card)]})
      .filter(([, found]) => found < 4.5)}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Without one these tests fail: a skipped proof is none."""
    from playwright.sync_api import sync_playwright

    asked = os.environ.get("QCONVERT_BROWSER")
    found = shutil.which(asked) if asked else next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail(INSTALL)
    with sync_playwright() as started:
        running = started.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield running
        running.close()


@pytest.fixture(scope="module")
def written(made: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`written("failed")`: the page of those reports, on disk."""
    folder = tmp_path_factory.mktemp("pages")

    def write(name: str) -> Path:
        path = folder / f"{name}.html"
        if not path.exists():
            path.write_text(whole_page(REPORTS[name](made)), encoding="utf-8")
        return path

    return write


@contextmanager
def opened(browser: Browser, path: Path, size: tuple[int, int] = DESK) -> Iterator[Page]:
    """The page in a context that is offline; a request, a word on the console or an error fails."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        offline=True,
    )
    asked, said = [], []
    page = context.new_page()
    page.on("request", lambda one: asked.append(one.url))
    page.on("console", lambda one: said.append(f"{one.type}: {one.text}"))
    page.on("pageerror", lambda one: said.append(str(one)))
    try:
        page.goto(path.as_uri())
        page.wait_for_load_state("load")
        yield page
    finally:
        context.close()
    assert said == []
    assert [url for url in asked if url.split("#")[0] != path.as_uri()
            and not url.startswith("data:image/svg+xml")] == []  # fmt: skip


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("name", ["passed", "failed", "undecided", "alone", "several"])
def test_the_verdict_is_seen_first(
    name: str, size: tuple[int, int], browser: Browser, written: Callable[[str], Path]
) -> None:
    words = {"passed": "PASS", "failed": "FAIL", "undecided": "INCONCLUSIVE", "alone": "PASS",
             "several": "PASS"}  # fmt: skip
    with opened(browser, written(name), size) as page:
        one = page.locator(".hero .word, .hero .count").first
        box = one.bounding_box()
        assert box is not None
        assert one.is_visible()
        assert one.inner_text().split()[-1] == words[name]
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= size[1]
        assert box["height"] >= 24
        symbol = page.locator(".hero .symbol").first.bounding_box()
        assert symbol is not None
        assert symbol["width"] >= 40


@pytest.mark.parametrize("name", REPORTS)
def test_it_is_readable(name: str, browser: Browser, written: Callable[[str], Path]) -> None:
    """No sideways scrolling, no small print, no picture that is empty or whose words meet."""
    with opened(browser, written(name)) as page:
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            wide, seen = page.evaluate(
                "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            )
            assert wide <= seen, width
            assert page.evaluate(TOO_SMALL) == []
            pictures = page.evaluate(PICTURES)
            assert pictures
            for picture in pictures:
                assert picture["width"] > 200, picture
                assert picture["height"] > 40, picture
                assert picture["outside"] == [], (width, picture)
                assert picture["over"] == [], (width, picture)


def test_words_stand_out_from_the_ground(browser: Browser, written: Callable[[str], Path]) -> None:
    """4.5 to 1, as the Web Content Accessibility Guidelines 2.1 ask for (level AA); by day and by
    night, which differ."""
    grounds = set()
    for name in ("failed", "undecided"):
        with opened(browser, written(name)) as page:
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                assert page.evaluate(CONTRAST) == [], scheme
                ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
                grounds.add((scheme, ground))
    assert len(grounds) == len({ground for _, ground in grounds}) == 2


def test_links_open_what_they_lead_to(browser: Browser, written: Callable[[str], Path]) -> None:
    with opened(browser, written("several")) as page:
        sections = page.locator("details.output")
        assert [one.get_attribute("open") for one in sections.all()] == [None] * 4
        page.locator(".comparison a").nth(1).click()
        page.wait_for_function("document.querySelectorAll('details')[1].open")
        assert page.locator("#output-2").is_visible()
        assert page.url.endswith("#output-2")
        sections.nth(2).locator("summary").press("Enter")
        assert page.locator("#output-3").is_visible()


def test_the_keyboard_reaches_what_scrolls(
    browser: Browser, written: Callable[[str], Path]
) -> None:
    with opened(browser, written("passed"), (700, 800)) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "To the results"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "scroll"


def test_markup_in_a_name_does_nothing(browser: Browser, written: Callable[[str], Path]) -> None:
    with opened(browser, written("hostile")) as page:
        assert page.locator("img, script").count() == 0
        assert "<img src=x onerror=alert(1)>" in page.locator("h1").inner_text()


def test_it_prints(browser: Browser, written: Callable[[str], Path]) -> None:
    """What is folded on the screen is on paper."""
    with opened(browser, written("several")) as page:
        page.emulate_media(media="print")
        assert page.locator("#output-2 .tiles").is_visible()
        assert page.pdf(format="A4").startswith(b"%PDF")
