"""The page in a real Chromium, opened from disk: sorting, filtering, links, keyboard, names, phone width, and a silent console."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import Browser, browser, chromium_or_skip
from leaderboard_runs import PROTOCOL, compiled
from page_runs import write_board
from PIL import Image

from dgbench.leaderboard.page.site import write_page
from dgbench.leaderboard.published import load_published

NAMES = (
    "[...document.querySelectorAll('.board tbody tr')].filter(row => !row.hidden).map(row => row.cells[0].dataset.key)"
)
OFFICIAL = ["dualtask", "randconv", "erm", "mixstyle", "erm_long", "cutout", "foreign.one"]
PAGES = ("index.html", "methods/dualtask.html", "methods/foreign.one.html", "cases/MSD/MSD_0000.html")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chromium_or_skip()
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        write_board(root)
    out = tmp_path_factory.mktemp("page") / "page"
    write_page(compiled(root), out, root=root, protocol=PROTOCOL, published=load_published())
    return out


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium_or_skip()
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture
def tab(chromium: Browser, page: Path) -> Iterator[Browser]:
    """The index in a window of a desk; afterwards nothing may have complained, and nothing but files may have been asked for."""
    chromium.messages.clear()
    chromium.requests.clear()
    chromium.resize(1400, 900)
    chromium.open(page / "index.html")
    yield chromium
    assert chromium.messages == []
    assert {address.partition(":")[0] for address in chromium.requests} <= {"file", "data"}


def header(name: str) -> str:
    """The selector of the button in the first header of that name, which it marks."""
    return f'th[data-found="{name}"] button'


def mark(tab: Browser, name: str) -> str:
    tab.value(
        "[...document.querySelectorAll('.board thead tr:last-child th')]"
        f".find(th => th.textContent === '{name}').dataset.found = '{name}'"
    )
    return header(name)


def sort_state(tab: Browser, name: str) -> str:
    return str(tab.value(f"document.querySelector('th[data-found=\"{name}\"]').getAttribute('aria-sort')"))


def test_script_and_style_run_from_disk_under_the_policy(tab: Browser) -> None:
    assert tab.value("document.querySelectorAll('.board thead button').length") > 20
    assert tab.value("getComputedStyle(document.querySelector('.scroll')).overflowX") == "auto"
    tab.value(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 1'}))"
    )
    assert tab.value("window.hacked") is None
    assert any("Content Security Policy" in message for message in tab.messages)
    tab.messages.clear()


def test_sorting_by_click(tab: Browser) -> None:
    assert tab.value(NAMES) == OFFICIAL
    button = mark(tab, "MSD")
    tab.click(button)
    assert sort_state(tab, "MSD") == "descending"  # the best first
    falling = tab.value(NAMES)
    assert falling == ["dualtask", "erm_long", "randconv", "erm", "mixstyle", "cutout", "foreign.one"]
    tab.click(button)
    assert sort_state(tab, "MSD") == "ascending"
    assert tab.value(NAMES) == [*reversed(falling[:5]), "cutout", "foreign.one"]  # holes come last both ways
    name = mark(tab, "method")
    tab.click(name)
    assert sort_state(tab, "method") == "ascending"
    assert sort_state(tab, "MSD") == "none"
    assert tab.value(NAMES) == sorted(OFFICIAL)
    tab.click(mark(tab, "rank"))
    assert tab.value(NAMES)[:4] == OFFICIAL[:4]


def test_sorting_by_keyboard(tab: Browser) -> None:
    button = mark(tab, "p (Holm)")
    tab.value(f"document.querySelector('{button}').focus()")
    tab.press("Enter")
    assert sort_state(tab, "p (Holm)") == "ascending"
    tab.press("Space")
    assert sort_state(tab, "p (Holm)") == "descending"
    assert tab.value(NAMES)[0] == "mixstyle"
    assert tab.value("document.activeElement.textContent") == "p (Holm)"


def test_every_column_sorts(tab: Browser) -> None:
    count = tab.value("document.querySelectorAll('.board thead button').length")
    for index in range(count):
        tab.value(f"document.querySelectorAll('.board thead button')[{index}].click()")
        assert sorted(tab.value(NAMES)) == sorted(OFFICIAL)
        assert (
            tab.value(
                "document.querySelectorAll('.board th[aria-sort=ascending], .board th[aria-sort=descending]').length"
            )
            == 1
        )


def test_filtering(tab: Browser) -> None:
    tab.click("[data-filter=text]")
    tab.type("ERM")
    assert tab.value(NAMES) == ["erm", "erm_long"]
    assert tab.value("document.querySelector('[data-count]').textContent") == "2 of 7 rows"
    choose = (
        "(() => {{ const one = document.querySelector('[data-filter={}]'); one.value = '{}';"
        " one.dispatchEvent(new Event('input')); }})()"
    )
    tab.value(choose.format("stamped", "no"))
    assert tab.value(NAMES) == ["erm"]
    tab.value(choose.format("text", ""))
    tab.value(choose.format("complete", "yes"))
    assert tab.value(NAMES) == ["dualtask", "randconv", "erm"]
    tab.value(choose.format("stamped", ""))
    tab.value(choose.format("complete", "no"))
    assert tab.value(NAMES) == ["cutout", "foreign.one"]


def test_links_lead_from_index_to_case_and_back(tab: Browser, page: Path) -> None:
    tab.click('a[href="methods/erm.html"]')
    tab.wait("document.readyState === 'complete' && document.querySelector('h1').textContent === 'erm'")
    assert tab.value("location.pathname").endswith("/methods/erm.html")
    tab.open(page / "cases" / "MSD" / "MSD_0000.html")
    assert tab.value("document.images.length") == 1
    tab.value("document.images[0].scrollIntoView()")  # images load when they come into view
    tab.wait("document.images[0].complete && document.images[0].naturalWidth > 500")
    assert tab.value("document.querySelector('nav a').href").endswith("/index.html")


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_scrolls_tables_and_never_the_page(tab: Browser, page: Path, name: str, tmp_path: Path) -> None:
    tab.resize(390, 844, mobile=True)
    tab.open(page / name)
    tab.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.value("document.documentElement.scrollWidth") == 390
    wide = "[...document.querySelectorAll('.scroll')].some(box => box.scrollWidth > box.clientWidth)"
    assert tab.value(wide)
    small = (
        "[...document.querySelectorAll('p, dd, dt, td, th, a')].filter(one => one.offsetParent && "
        "parseFloat(getComputedStyle(one).fontSize) < 12).length"
    )
    assert tab.value(small) == 0
    tab.screenshot(tmp_path / "phone.png")
    with Image.open(tmp_path / "phone.png") as picture:
        assert picture.width == 390
        assert len(np.unique(np.asarray(picture.convert("L")))) > 30


@pytest.mark.parametrize("name", PAGES)
def test_everything_has_a_name(tab: Browser, page: Path, name: str) -> None:
    tab.open(page / name)
    tab.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    met = tab.named()
    asked = {
        "button",
        "link",
        "searchbox",
        "combobox",
        "image",
        "region",
        "search",
        "heading",
        "table",
        "columnheader",
        "rowheader",
    }
    assert {"heading", "link"} <= {role for role, _ in met}
    assert [role for role, words in met if role in asked and not words.strip()] == [], "without a name"
    assert tab.value("document.documentElement.lang") == "en"
    assert tab.value("document.querySelectorAll('h1').length") == 1
    if name == "index.html":
        assert ("searchbox", "Method") in met
        assert any(role == "image" and "interval" in words and "points" in words for role, words in met)


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_light_and_dark(tab: Browser, page: Path, dark: bool) -> None:
    """WCAG AA: the contrast of text with what lies behind it is at least 4.5."""
    tab.resize(1400, 900, dark=dark)
    tab.open(page / "index.html")
    script = """(() => {
      const light = (text) => { const [r, g, b] = text.match(/[0-9.]+/g).map(Number).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const behind = (one) => { for (; one; one = one.parentElement) { const c = getComputedStyle(one).backgroundColor;
        if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; };
      return Math.min(...[...document.querySelectorAll('p, dd, dt, td, th, a, button, caption, summary, h1, h2, h3, label')]
        .filter(one => one.offsetParent && one.textContent.trim()).map(one => {
          const a = light(getComputedStyle(one).color), b = light(behind(one));
          return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }));
    })()"""
    assert tab.value(script) >= 4.5


def test_without_script_every_row_is_there(tab: Browser, page: Path) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page / "index.html")
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)
    assert tab.value(NAMES) == OFFICIAL
    assert tab.value("getComputedStyle(document.querySelector('.tools')).display") == "none"
    assert tab.value("document.querySelectorAll('.board thead button').length") == 0
