"""The pages of runs and of a sweep in a real browser, as wide as a screen and as narrow as a telephone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.sweeps import make_sweep, trial

from trainers.report.report import report

pytestmark = pytest.mark.slow

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --force-color-profile=srgb"
)
PICTURE = (  # of 1 x 1 pixels
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15\xc4\x89\x00\x00"
    b"\x00\rIDATx\x9cc\xf8\xff\xff\xff\x7f\x00\t\xfb\x03\xfd\x05CE\xca\x00\x00\x00\x00IEND\xaeB`\x82"
)
LONG = "x" * 300


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs.html and sweep.html, of a sweep with repeats, failures, a baseline and long names."""
    folder = tmp_path_factory.mktemp("pages")
    trials = [
        trial(0, values={"lr": 0.1, "batch_size": 32}, scores=[0.5, 0.7, 0.9], memory_bytes=2**29),
        trial(1, "stopped_early", values={"lr": 0.1, "batch_size": 64}, scores=[0.4], message=LONG),
        trial(2, values={"lr": 0.01, "batch_size": 32}, scores=[0.3, 0.95, 0.8], memory_bytes=2**29),
        trial(3, "does_not_fit", values={"lr": 0.01, "batch_size": 64}, memory_bytes=2**33, message="needs 8.00 GiB"),
    ]
    again = trial(4, values={"lr": 0.1, "batch_size": 32}, scores=[0.6], seed=1, repeat_of=trials[0]["name"])
    trials.append({**again, "name": "again"})
    made = make_sweep(folder, "sweep", trials, winner=trials[0]["name"], memory_limit_bytes=2**32)
    for name in ("confusion.png", "predictions.png"):
        for best in (trials[0], trials[2]):  # the winner over all seeds, and the best run
            (made / best["name"] / name).write_bytes(PICTURE)
    make_sweep(folder, "slower", [trial(0, values={"lr": 0.1, "batch_size": 32}, epoch_seconds=5.0)])
    for name, options in {"sweep": {"baseline": "slower"}, "runs": {"price_per_hour": 3.6}}.items():
        runs = ["sweep"] if name == "sweep" else [f"sweep/{entry['name']}" for entry in trials[:3]]
        text = report(runs, storage=str(folder), format="html", **options)  # type: ignore[arg-type]
        (folder / f"{name}.html").write_text(text)
    rates = {"low": 1e-4, "high": 1.0, "log": True}
    drawn = [trial(n, values={"lr": 0.001 * 1.7**n, "momentum": 0.5 + 0.04 * n}) for n in range(9)]
    make_sweep(folder / "storage", "random", drawn, plan={"space": {"lr": rates, "momentum": {**rates, "log": False}}})
    (folder / "random.html").write_text(report(["random"], storage=str(folder / "storage"), format="html"))
    for number, data in enumerate(["/data/gravel", "/data/a_folder_with_a_long_name_" + "x" * 60]):
        shutil.copytree(folder / "sweep" / trials[0]["name"], folder / "storage" / f"run{number}")
        run = json.loads((folder / "storage" / f"run{number}" / "run.json").read_text())
        run |= {"dataset": {"name": "image_folder", "fingerprint": data}, "scale": {"workers": 0, "data": data}}
        (folder / "storage" / f"run{number}" / "run.json").write_text(json.dumps(run))
    (folder / "storage.html").write_text(report([], storage=str(folder / "storage"), format="html"))
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[test]'")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture(params=[1280, 390])
def width(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=["runs", "sweep"])
def page(request: pytest.FixtureRequest, browser: Any, pages: Path, width: int) -> Iterator[Any]:
    """The page, opened. No error may have been logged when the test is over."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((pages / f"{request.param}.html").as_uri())
    yield browser
    assert browser.get_log("browser") == []


def point(browser: Any, element: str) -> str:
    """Moves the pointer onto the middle of an element; the text beside it then, empty where there is none."""
    x, y = browser.execute_script(
        f"const element = {element}; element.scrollIntoView({{block: 'center'}});"
        "const box = element.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]"
    )
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})
    text = "const tip = document.querySelector('.tip'); return tip.hidden ? '' : tip.innerText"
    return str(browser.execute_script(text))


def overflow(browser: Any) -> int:
    """Pixels that the page is wider than the window."""
    return int(browser.execute_script("return document.documentElement.scrollWidth - innerWidth"))


def column(browser: Any, header: str) -> list[str]:
    """The sort keys of a column of the first table, from the top."""
    return list(
        browser.execute_script(
            "const table = document.querySelector('table');"
            "const place = [...table.rows[0].cells].findIndex(cell => cell.innerText.trim() === arguments[0]);"
            "return [...table.tBodies[0].rows].map(row => row.cells[place].dataset.v)",
            header,
        )
    )


def click(browser: Any, header: str) -> None:
    browser.execute_script(
        "[...document.querySelectorAll('th button')].find(each => each.innerText.trim() === arguments[0]).click()",
        header,
    )


@pytest.mark.parametrize("page", ["runs", "sweep", "storage", "random"], indirect=True)
def test_the_page_is_no_wider_than_the_window_and_shows_all_its_pictures(page: Any, request: Any) -> None:
    assert overflow(page) <= 0
    assert page.execute_script("return document.querySelectorAll('svg.chart').length") >= 4
    shown = {"runs": 2, "sweep": 2, "storage": 4, "random": 0}[request.node.callspec.params["page"]]
    assert page.execute_script("return [...document.images].map(image => image.naturalWidth)") == [1] * shown
    page.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    assert overflow(page) <= 0
    outside = (
        "return [...document.querySelectorAll('svg text')].filter(text => {"
        "const own = text.getBoundingClientRect(), chart = text.closest('svg').getBoundingClientRect();"
        "return own.left < chart.left - 1 || own.right > chart.right + 1}).map(text => text.textContent)"
    )
    assert page.execute_script(outside) == []


def test_the_pointer_on_a_chart_shows_the_run_and_its_value(page: Any) -> None:
    chart = "document.querySelector('svg[data-y=\"val/accuracy\"]')"
    series = f"{chart}.querySelector('g[data-label^=\"002\"] circle')"  # at the last epoch
    shown = point(page, series)
    assert "002-lr=0.01-batch_size=32" in shown
    assert "val/accuracy 0.8 at epoch 3" in shown
    assert overflow(page) <= 0
    assert page.execute_script(f"return {chart}.querySelectorAll('.cross, .here, .series.on').length") == 3
    apart = page.execute_script(
        f"const dot = {series}, here = {chart}.querySelector('.here');"
        "return [here.cx.baseVal.value - dot.cx.baseVal.value, here.cy.baseVal.value - dot.cy.baseVal.value]"
    )
    assert apart == pytest.approx([0, 0], abs=0.1)
    inside = (
        "const box = document.querySelector('.tip').getBoundingClientRect();"
        "return box.left >= 0 && box.right <= innerWidth && box.top >= 0 && box.bottom <= innerHeight"
    )
    assert page.execute_script(inside)
    assert point(page, "document.querySelector('h1')") == ""
    assert page.execute_script(f"return {chart}.querySelectorAll('.cross, .here, .series.on').length") == 0


def test_a_click_on_a_header_sorts_the_table_and_a_second_one_turns_it(page: Any) -> None:
    before = column(page, "best")
    click(page, "best")
    rising = column(page, "best")
    known = sorted((value for value in before if value), key=float)
    assert rising == known + [value for value in before if not value]
    assert rising != before
    click(page, "best")
    assert column(page, "best") == known[::-1] + [value for value in before if not value]
    assert page.execute_script("return document.querySelectorAll('th[aria-sort=descending]').length") == 1
    click(page, "run")
    assert column(page, "run") == sorted(column(page, "run"))
    assert page.execute_script("return document.querySelectorAll('th[aria-sort]').length") == 1


@pytest.mark.parametrize("page", ["sweep"], indirect=True)
def test_the_pointer_on_a_map_shows_the_trials_of_the_field(page: Any) -> None:
    shown = point(page, "document.querySelector('svg.map g rect.field')")
    assert "2 trials, 2 finished: 0.9" in shown
    assert "lr 0.1, batch_size 32" in shown
    assert "1 does not fit" in point(page, "document.querySelector('svg.map g rect.empty')")
