"""The pages in headless Chromium, as their readers see and use them."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from experiments.report import build_comparison, build_report, build_sweep_report
from tests.browser import chromium
from tests.experiments.made_up_run import make_up_run
from tests.experiments.report.test_sweep import grid

HOSTILE = """</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">'"&"""
HOSTILE_NAME = HOSTILE.replace("/", "|")
"""Of an attack, whose name is part of a file's."""
NAMES = ("run", "failures", "comparison", "sweep")

pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of a run with two attacks, of one of which all attacks failed, of both, and of a sweep.

    Whatever a run can say is hostile in the one with failures.
    """
    folder = tmp_path_factory.mktemp("pages")
    several = ("federation.clients=3", "federation.clients_per_round=3", "federation.rounds=3", "client.batch_size=2")
    run = make_up_run(folder / "run", "attack.name=['residual', 'dlg']", "data.partition=iid", *several)
    failures = make_up_run(folder / HOSTILE_NAME, f"strategy.name={HOSTILE}")
    failures.write_environment({HOSTILE: HOSTILE}, {HOSTILE: HOSTILE})
    statuses, attacks = [HOSTILE] * 3 + ["killed"], ["=1+1", HOSTILE_NAME] * 2
    table = pd.read_csv(failures.leakage_csv).assign(status=statuses, psnr=None, attack=attacks)
    table.to_csv(failures.leakage_csv, index=False)
    swept = grid().assign(run=HOSTILE, status=HOSTILE, attack=HOSTILE)
    axes = ["client.batch_size", "client.local_steps"]
    return {
        "run": build_report(run.path),
        "failures": build_report(failures.path),
        "comparison": build_comparison([run.path, failures.path], folder / "comparison.html"),
        "sweep": build_sweep_report(swept, axes, folder / "sweep.html"),
    }


def opened(browser: Browser, path: Path, width: int = 1280, scheme: str = "light") -> Page:
    """The page with all its charts drawn. What it asks for and what goes wrong is in its ``heard``."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    heard: list[str] = []
    page.heard = heard
    page.on("console", lambda message: heard.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: heard.append(f"error: {error}"))
    page.on("request", lambda request: request.url.startswith("data:") or heard.append(f"request: {request.url}"))
    page.goto(path.as_uri())
    heard.remove(f"request: {path.as_uri()}")
    page.evaluate("document.querySelectorAll('figure.chart').forEach(draw)")
    page.wait_for_function("views.length === document.querySelectorAll('figure.chart').length")
    return page


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_whole_quiet_and_asks_for_nothing(browser: Browser, pages: dict[str, Path], name: str) -> None:
    page = opened(browser, pages[name])
    assert page.locator("figure.chart svg").count() == page.locator("figure.chart").count()
    assert (page.locator("figure.chart").count() == 0) == (name == "failures")
    assert page.heard == []
    assert page.evaluate("window.hacked") is None
    page.emulate_media(media="print")
    assert page.pdf().startswith(b"%PDF")
    page.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_a_phone(browser: Browser, pages: dict[str, Path], name: str) -> None:
    page = opened(browser, pages[name], width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    if name == "run":
        page.locator(".card > button").first.click()
        assert page.evaluate("document.querySelector('dialog').scrollWidth") <= 390
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_everybody_can_use_a_page(browser: Browser, pages: dict[str, Path], name: str, scheme: str) -> None:
    page = opened(browser, pages[name], scheme=scheme)
    findings = Axe().run(page).response["violations"]
    if name == "run":
        page.select_option("select[name=view]", "table")
        findings += Axe().run(page, context="#listed").response["violations"]
        page.select_option("select[name=view]", "pictures")
        page.locator(".card > button").first.click()
        findings += Axe().run(page, context="dialog").response["violations"]
    grave = [found for found in findings if found["impact"] in ("serious", "critical")]
    assert [(found["id"], [node["html"][:200] for node in found["nodes"]]) for found in grave] == []
    page.close()


def test_what_a_run_says_is_shown_as_it_is(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["failures"])
    assert HOSTILE in page.locator("dl:visible").first.inner_text()
    assert HOSTILE in page.locator(".card .missing, .card header").all_inner_texts()[1]
    expect(page.locator("h1")).to_contain_text("No attack ended with a result: 4 of 4 attempts")
    page.select_option("select[name=status]", HOSTILE)
    expect(page.locator("#count")).to_contain_text("1 to 3 of 3")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV of these").click()
    rows = pd.read_csv(download.value.path())
    assert set(rows["status"]) == {HOSTILE}
    assert set(rows["attack"]) == {"'=1+1", HOSTILE_NAME}
    page.close()


def test_pictures_are_chosen_sorted_and_paged(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["run"])
    count, cards = page.locator("#count"), page.locator(".card")
    expect(count).to_have_text("1 to 24 of 36 reconstructions")
    page.locator("#next").click()
    expect(count).to_have_text("25 to 36 of 36 reconstructions")
    expect(cards).to_have_count(12)
    page.select_option("select[name=client]", "1")
    expect(count).to_have_text("1 to 12 of 12 reconstructions (36 in all)")
    page.select_option("select[name=attack]", "residual")
    page.select_option("select[name=round]", "2")
    expect(cards).to_have_count(2)
    expect(cards.first.locator("header")).to_contain_text("Round 2 · Client 1, image 0")
    page.get_by_role("button", name="Show all").click()
    page.select_option("select[name=sort]", "best")
    levels = [float(text.split()[0]) for text in page.locator(".card figure:nth-child(2) b").all_inner_texts()]
    assert levels == sorted(levels, reverse=True)
    page.fill("input[name=from]", str(levels[3]))
    assert int(count.inner_text().split()[2]) in (3, 4)
    page.fill("input[name=from]", "999")
    expect(count).to_have_text("No reconstruction is like that.")
    page.get_by_role("button", name="Show all").click()
    page.select_option("select[name=status]", "timeout after 600 s")
    page.select_option("select[name=view]", "table")
    expect(page.locator("#listed tbody tr")).to_have_count(4)
    page.get_by_role("button", name="Show client 2").click()
    expect(count).to_have_text("1 to 12 of 12 reconstructions (36 in all)")
    assert page.heard == []
    page.close()


def test_a_picture_is_enlarged_beside_its_difference(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["run"])
    first, second = (page.locator(".card > button").nth(number) for number in (0, 1))
    first.focus()
    page.keyboard.press("ArrowRight")
    expect(second).to_be_focused()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    expect(dialog).to_be_visible()
    expect(dialog.locator("h2")).to_have_text("Round 1 · Client 0, image 0 · residual")
    difference = """async () => {
      const canvas = document.querySelector("dialog canvas");
      while (canvas.width === 300) await new Promise(requestAnimationFrame);
      return Math.max(...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
        .filter((_, i) => i % 4 < 3));
    }"""
    plain = page.evaluate(difference)
    page.select_option("#factor", "4")
    assert page.evaluate(difference) == min(255, 4 * plain) > 0
    page.locator("#close").focus()
    page.keyboard.press("ArrowRight")
    expect(dialog.locator("h2")).to_have_text("Round 1 · Client 0, image 1 · dlg")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(second).to_be_focused()
    page.close()


def test_a_point_of_a_chart_tells_its_image_and_opens_it(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["run"])
    point = page.locator("figure.chart").nth(1).locator(".mark-symbol path").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    expect(page.locator("#tip")).to_be_visible()
    assert page.locator("#tip img").count() == 3
    assert "PSNR (dB)" in page.locator("#tip").inner_text()
    page.select_option("select[name=client]", "2")
    point.scroll_into_view_if_needed()
    point.click(force=True)
    expect(page.locator("dialog h2")).to_contain_text("Client 0")
    expect(page.locator("#count")).to_have_text("1 to 24 of 36 reconstructions")
    page.close()


def test_tables_are_downloaded_and_the_theme_is_changed(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["sweep"])
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV of this table").click()
    assert len(pd.read_csv(download.value.path())) == 12
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    for _ in ("light", "dark"):
        page.locator("#theme").click()
    expect(page.locator("#theme")).to_have_text("Theme: dark")
    assert page.evaluate(ground) != light
    assert page.evaluate("views[0].signal('ink')") == page.evaluate("getComputedStyle(document.body).color")
    page.close()


def test_a_thousand_images_open_quickly(browser: Browser, tmp_path: Path) -> None:
    settings = ("federation.clients=10", "federation.clients_per_round=10", "federation.rounds=25")
    run = make_up_run(tmp_path / "run", *settings, "client.batch_size=4", "data.partition=iid", "data.tiles_per_side=6")
    report = build_report(run.path)
    assert report.stat().st_size < 15_000_000

    def seconds() -> float:
        page = browser.new_page()
        page.goto(report.as_uri())
        expect(page.locator("#count")).to_have_text("1 to 24 of 1000 reconstructions")
        taken = page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart") / 1000
        page.close()
        return float(taken)

    fastest = min(seconds() for _ in range(3))
    print(f"{report.stat().st_size / 1e6:.1f} MB, opened in {fastest:.2f} s")
    assert fastest < 3
