"""The pages in a real browser: layout, dark mode, keyboard, accessibility, and no request to anywhere else."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import axe_playwright_python
import pytest
import sample
from browser import chromium, launched, serving
from harness.place import create_database
from harness.site import new_site

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="there is no Chromium on this machine"),
]

_AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
_WIDTHS = (360, 768, 1280)
_SCHEMES = ("light", "dark")
_LUMINANCE = """() => {
    const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
    return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
}"""
_OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window."""
    with launched(chromium()) as running:
        yield running


@pytest.fixture(scope="module")
def pages():
    """The pages of the sample when there is trouble, by path."""
    return sample.pages(is_troubled=True)


@pytest.fixture(scope="module")
def url(pages):
    """Where the pages of the sample are served."""
    with serving(pages) as address:
        yield address


@contextmanager
def opened(browser, address, **options):
    """A page in a context of its own, which fails for a complaint of the browser or a request elsewhere."""
    complaints, requests = [], []
    context = browser.new_context(**options)
    try:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        context.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        yield page
        origin = re.match(r"(https?://[^/]+|file://)", address)[1]
        assert complaints == []
        assert [each for each in requests if not each.startswith((origin, "data:"))] == []
    finally:
        context.close()


def violations(page):
    """What axe finds, in a form to read: the rule, and the elements."""
    page.evaluate(_AXE)
    found = page.evaluate("async () => JSON.stringify((await axe.run()).violations)")
    return [(each["id"], [node["html"][:120] for node in each["nodes"][:3]]) for each in json.loads(found)]


@pytest.mark.parametrize("scheme", _SCHEMES)
@pytest.mark.parametrize("width", _WIDTHS)
def test_every_page_fits_and_is_accessible(browser, pages, url, width, scheme):
    """At three widths, light and dark: nothing is wider than the page, axe finds nothing, and nothing is loaded."""
    for path in (each for each in pages if each not in {"/report.html", "/database/billing"}):
        with opened(browser, url + path, viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
            assert page.evaluate(_OVERFLOW) == 0, path
            assert violations(page) == [], path
            assert (page.evaluate(_LUMINANCE) < 0.2) == (scheme == "dark")


def test_the_sentence_is_the_first_and_largest_thing(browser, url):
    """On a phone, the sentence is on the first screen, in the largest letters of the page."""
    with opened(browser, url + "/", viewport={"width": 360, "height": 640}) as page:
        box = page.locator("h1").bounding_box()
        assert box["y"] + box["height"] < 320
        sizes = page.evaluate(
            "() => [...document.querySelectorAll('h1,h2,p,td')].map(e => parseFloat(getComputedStyle(e).fontSize))"
        )
        assert sizes[0] == max(sizes) > 20
        assert page.locator("h1").inner_text().startswith("2 of 12 databases need attention: billing in")


def test_everything_can_be_done_with_the_keyboard(browser, url):
    """Tab comes to the skip link, the alarms and the list; Enter follows a link; arrows change the timeline."""
    with opened(browser, url + "/") as page:
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.textContent") == "Skip to the content"
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("() => document.activeElement.getAttribute('href')"))
            outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid"
        assert reached.index("database/billing") < reached.index("?sort=name") < reached.index("database/shop", 3)
        page.goto(url + "/database/app")
        week, year = page.get_by_label("Last week").first, page.get_by_label("Last year").first
        week.focus()
        page.keyboard.press("ArrowRight")
        assert year.is_checked()
        assert page.locator(".spans").first.locator("div").nth(2).is_visible()
        assert not page.locator(".spans").first.locator("div").nth(1).is_visible()


def test_pages_work_without_javascript(browser, pages, url):
    """Without scripts, the timelines change, the list is sorted by links, and there are no dead buttons."""
    with opened(
        browser, url + "/database/app", java_script_enabled=False, viewport={"width": 800, "height": 800}
    ) as page:
        page.locator("label", has_text="Last day").first.click()
        assert page.locator(".spans").first.locator("div").nth(0).is_visible()
        assert page.locator(".spans svg[role=img]").first.is_visible()
    path = next(each for each in pages if each.startswith("/snapshot/"))
    with opened(browser, url + path, java_script_enabled=False) as page:
        assert page.locator("code").count() == 5
        assert page.locator("button").count() == 0


def test_a_command_is_copied(browser, pages, url):
    """The button beside a command copies exactly that, and says so."""
    path = next(each for each in pages if each.startswith("/snapshot/"))
    with opened(browser, url + path, permissions=["clipboard-read", "clipboard-write"]) as page:
        button = page.locator("button").nth(3)
        button.click()
        page.get_by_text("Copied").wait_for()
        snapshot_id = path.rpartition("/")[2]
        assert page.evaluate("() => navigator.clipboard.readText()") == f"backupd dump app@{snapshot_id} > app.sql"


def test_a_screen_reader_gets_the_timelines_in_words(browser, url):
    """Each picture has a name with its facts, and headings have their order."""
    with opened(browser, url + "/database/app") as page:
        named = page.get_by_role("img", name=re.compile(r"Last week: \d+ snapshots; .*test restores: .* passed"))
        assert named.count() == 2
        levels = page.evaluate("() => [...document.querySelectorAll('h1,h2,h3,h4')].map(e => +e.tagName[1])")
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        tree = page.locator("body").aria_snapshot()
        assert "main:" in tree
        assert "navigation" in tree


def test_a_report_works_as_a_file(browser, pages, tmp_path):
    """Opened from the disk, the report follows its links inside, and loads nothing."""
    file = tmp_path / "report.html"
    file.write_text(pages["/report.html"])
    with opened(browser, file.as_uri(), viewport={"width": 390, "height": 800}) as page:
        assert page.evaluate(_OVERFLOW) == 0
        assert violations(page) == []
        page.get_by_role("link", name="billing", exact=True).click()
        assert page.url.endswith("#database-billing")
        box = page.locator("#database-billing").bounding_box()
        assert abs(box["y"]) < 60


def test_a_browser_can_walk_through_a_daemon(browser, tmp_path):
    """From the list of a real daemon to a database, to a snapshot, and back."""
    site = new_site(tmp_path)
    create_database(tmp_path / "app.db", rows=30, journal_mode="wal")
    site.configure("app.db", retention={"after_snapshot": True})
    with site.daemon() as running:
        running.wait_for("snapshot", database="app", outcome="created")
        running.wait_for("snapshot", after=running.run_again("app"), database="app")
        with opened(browser, f"http://127.0.0.1:{site.port}/", viewport={"width": 390, "height": 800}) as page:
            page.get_by_role("link", name="app", exact=True).click()
            assert violations(page) == []
            page.locator("tbody a").first.click()
            assert page.locator("code").first.inner_text().startswith("backupd restore app@")
            assert violations(page) == []
            page.get_by_role("link", name="All databases").click()
            assert page.locator("h1").inner_text().startswith("The database is current")
