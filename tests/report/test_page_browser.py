"""The page in a browser: it does what it says, by mouse and by keyboard, and asks nobody for anything."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, find_browser, opened
from page_runs import IMAGES, RUNS
from PIL import Image

from basicsr_quant.cli.main import main

TRANSFORMS = "['left', 'right'].map((side) => document.getElementById(`${side}-image`).style.transform)"
SPLIT = "Number(document.getElementById('divider').getAttribute('aria-valuenow'))"
NAMES = "[...document.querySelectorAll('#results tbody tr')].map((row) => row.cells[0].textContent)"
SORTED = "[...document.querySelectorAll('#results th[aria-sort]')].map((head) => [head.textContent, head.ariaSort])"
UNNAMED = """[...document.querySelectorAll('button, select, input, img, svg, [role=slider], [role=region], [tabindex]')]
  .filter((node) => node.getAttribute('aria-hidden') !== 'true' && node.offsetParent !== null)
  .filter((node) => !(node.labels?.length || node.ariaLabel || node.alt || node.hasAttribute('aria-labelledby')
    || (node.tagName === 'BUTTON' && node.textContent.trim())))
  .map((node) => node.outerHTML.slice(0, 100))"""


@pytest.fixture(scope="module")
def program() -> str:
    return find_browser()


@pytest.fixture(scope="module")
def pages(program: str, tested_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``whole``, of all runs, and ``poor``, of a run of which hardly anything is left."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tested_folder)
        assert main(["report", "results", "-o", str(folder / "whole"), "--title", "Tiny runs", "--trainings",
                     "experiments/dqc", "tb_logger/dqc"]) == 0
    poor = folder / "results" / "poor"
    poor.mkdir(parents=True)
    (poor / "metrics.json").write_text(json.dumps({"val": {"mean": {}, "images": 3, "seconds": 1.5}}))
    assert main(["report", str(poor), "-o", str(folder / "poor")]) == 0
    shutil.rmtree(folder / "results")
    return folder


@pytest.fixture(scope="module")
def browser(program: str, pages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened(program, tmp_path_factory.mktemp("browser") / "profile") as found:
        yield found


@pytest.fixture
def whole(browser: Browser, pages: Path) -> Iterator[Browser]:
    """The browser at the whole page; afterwards nothing was wrong and nobody was asked for anything."""
    browser.problems.clear()
    browser.requests.clear()
    browser.screen(1000, 800)
    browser.open(pages / "whole" / "index.html")
    yield browser
    assert browser.problems == []
    own = (pages / "whole").as_uri()
    assert browser.requests and all(address.startswith((own, "data:")) for address in browser.requests)


def pixels(browser: Browser, selector: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """What an element looks like but for its edge, (H, W, 3)."""
    browser.centre(selector)
    browser.settle()
    place = browser.evaluate(f"(() => {{ const box = document.querySelector('{selector}').getBoundingClientRect(); "
                             "return [box.left + 2, box.top + 2, box.right - 2, box.bottom - 2]; })()")
    shown = Image.open(io.BytesIO(browser.picture())).convert("RGB").crop([round(edge) for edge in place])
    return np.asarray(shown)


def test_slider_shows_one_image_on_each_side(whole: Browser) -> None:
    assert whole.evaluate(SPLIT) == 50
    whole.evaluate("document.getElementById('divider').style.opacity = 0")
    seen = {}
    for name, key in (("bicubic", "run0"), ("bits3", "run2")):
        whole.choose("#left", key)
        whole.choose("#right", key)
        seen[name] = pixels(whole, "#viewer")
    assert not np.array_equal(seen["bicubic"], seen["bits3"])
    whole.choose("#left", "run0")
    whole.evaluate("document.getElementById('divider').style.opacity = 1")
    start = whole.centre("#divider")
    width = whole.evaluate("document.getElementById('viewer').clientWidth")
    whole.drag(start, (start[0] - width / 4, start[1] + 20))
    assert whole.evaluate(SPLIT) == 25
    whole.evaluate("document.getElementById('divider').style.opacity = 0")
    both = pixels(whole, "#viewer")
    border = round(width * 0.25)
    assert np.array_equal(both[:, :border - 4], seen["bicubic"][:, :border - 4])
    assert np.array_equal(both[:, border + 4:], seen["bits3"][:, border + 4:])


def test_slider_by_keyboard(whole: Browser) -> None:
    whole.choose("#right", "run3")
    whole.evaluate("document.getElementById('viewer').focus()")
    whole.key("Tab")
    assert whole.evaluate("document.activeElement.id") == "divider"
    for key, expected in (("ArrowLeft", 49), ("ArrowRight", 50), ("Home", 0), ("End", 100)):
        whole.key(key)
        assert whole.evaluate(SPLIT) == expected
    assert whole.evaluate("document.getElementById('divider').ariaValueText") == "100 percent LR, the rest bits8"


def test_zoom_keeps_its_place(whole: Browser) -> None:
    whole.click("#zoom-in")
    assert whole.evaluate("document.getElementById('zoom').textContent").startswith("1.3×")
    x, y = whole.centre("#viewer")
    whole.evaluate("document.getElementById('viewer').focus()")
    whole.mouse("Wheel", x + 100, y + 50, deltaX=0, deltaY=-800)
    whole.key("+")
    whole.drag((x + 60, y + 60), (x, y + 30))
    whole.key("ArrowLeft")
    place = whole.evaluate(TRANSFORMS)
    assert place[0] == place[1] and "scale(7.7" in place[0]
    for name in range(1, len(IMAGES)):
        whole.choose("#image", str(name))
        assert whole.evaluate("document.getElementById('left-image').alt") == f"{IMAGES[name]}, LR"
        assert whole.evaluate(TRANSFORMS) == place
    whole.choose("#right", "HR")
    whole.click("#swap")
    assert whole.evaluate("document.getElementById('left-image').alt") == f"{IMAGES[-1]}, HR"
    whole.screen(700, 800)
    whole.settle()
    assert whole.evaluate(TRANSFORMS) == place
    whole.evaluate("document.getElementById('viewer').focus()")
    whole.key("0")
    assert whole.evaluate(TRANSFORMS) == ["translate(0%, 0%) scale(1)"] * 2


def test_wheel_scrolls_the_page_until_the_image_is_chosen(whole: Browser) -> None:
    x, y = whole.centre("#viewer")
    before = whole.evaluate("scrollY")
    whole.mouse("Wheel", x, y, deltaX=0, deltaY=60)
    whole.wait_for(f"scrollY > {before}")
    assert whole.evaluate(TRANSFORMS)[0] == "translate(0%, 0%) scale(1)"


def test_table_sorts(whole: Browser) -> None:
    assert whole.evaluate(NAMES) == list(RUNS)
    values = {row[0]: float(row[1]) for row in whole.evaluate(
        "[...document.querySelectorAll('#results tbody tr')].map((row) => [row.cells[0].textContent, "
        "row.cells[2].sortValue])")}
    whole.click("#results th:nth-child(3) button")
    assert whole.evaluate(NAMES) == sorted(values, key=lambda name: -values[name])
    assert whole.evaluate(SORTED) == [["psnr", "descending"]]
    whole.key("Enter")
    assert whole.evaluate(NAMES) == sorted(values, key=lambda name: values[name])
    assert whole.evaluate(SORTED) == [["psnr", "ascending"]]
    assert whole.evaluate("document.querySelectorAll('#results td.best').length") == 2


def test_layers(whole: Browser) -> None:
    heading = "document.getElementById('layer-heading').textContent"
    layers = whole.evaluate("JSON.parse(document.getElementById('data').textContent).runs[2].analysis.layers")
    assert whole.evaluate("document.getElementById('layer').options.length") == len(layers) > 10
    assert whole.evaluate(heading).startswith(layers[0]["name"])
    whole.evaluate("document.getElementById('layer-position').focus()")
    whole.key("ArrowRight")
    assert whole.evaluate(heading).startswith(layers[1]["name"])
    whole.choose("#layer", str(len(layers) - 1))
    assert whole.evaluate(heading).startswith(layers[-1]["name"])
    assert whole.evaluate("document.querySelectorAll('#histograms svg').length") == len(layers[-1]["tensors"])
    assert whole.evaluate("document.querySelectorAll('#histograms svg .bar').length") == 64 * len(layers[-1]["tensors"])
    whole.click("#bounds summary")
    whole.wait_for("document.querySelectorAll('#bounds-table tbody tr').length > 0")
    assert whole.evaluate("document.querySelectorAll('#bounds-table tbody tr').length") == sum(
        len(layer["tensors"]) for layer in layers)
    whole.click("#bounds-table tbody button")
    assert whole.evaluate(heading).startswith(layers[0]["name"])


def test_plots(whole: Browser) -> None:
    told = "document.querySelector('#size-plot svg').ariaLabel"
    assert whole.evaluate(told).startswith("psnr against bytes")
    assert whole.evaluate("document.querySelectorAll('#size-plot circle').length") == len(RUNS)
    assert whole.evaluate("document.querySelectorAll('#time-plot circle').length") == len(RUNS)
    whole.choose("#plot-metric", "ssim")
    assert whole.evaluate(told).startswith("ssim against bytes")


def test_training_curves(whole: Browser) -> None:
    told = "document.querySelector('#{}-plot svg').ariaLabel"
    names = "[...document.querySelectorAll('#training-key li')].map((item) => item.textContent)"
    assert whole.evaluate(names) == ["experiments/dqc", "tb_logger/dqc"]
    assert whole.evaluate("document.querySelectorAll('#loss-plot polyline.series').length") == 2
    points = whole.evaluate("[...document.querySelector('#loss-plot polyline').points].map(({x, y}) => [x, y])")
    assert len(points) == 4 and all(left[0] < right[0] for left, right in zip(points, points[1:], strict=False))
    curve = whole.evaluate("JSON.parse(document.getElementById('data').textContent).trainings[0].losses.pixel")
    rises = [value[1] < other[1] for value, other in zip(curve, curve[1:], strict=False)]
    assert rises == [left[1] > right[1] for left, right in zip(points, points[1:], strict=False)]
    assert whole.evaluate(told.format("validation")).startswith("val psnr over 4 iterations. experiments/dqc: ")
    whole.choose("#validation-choice", "val ssim")
    assert whole.evaluate(told.format("validation")).startswith("val ssim over 4 iterations")
    colours = whole.evaluate("[...document.querySelectorAll('#loss-plot .series')].map("
                             "(line) => getComputedStyle(line).stroke)")
    assert len(set(colours)) == 2


@pytest.mark.parametrize("dark", [False, True])
def test_phone(whole: Browser, dark: bool) -> None:
    """Nothing is wider than a narrow screen, everything has a name, and both colour schemes are used."""
    whole.screen(390, 844, dark)
    whole.settle()
    assert whole.evaluate("document.documentElement.scrollWidth") <= 390
    assert whole.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    assert whole.evaluate(UNNAMED) == []
    assert whole.evaluate("document.querySelectorAll('[id]').length") == whole.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map((node) => node.id)).size")


def test_page_asks_nobody(whole: Browser) -> None:
    """Even a script in the page could not reach the network."""
    assert whole.evaluate("fetch('https://example.org').then(() => 'reached', () => 'refused')") == "refused"
    assert all("Content Security Policy" in problem for problem in whole.problems)
    whole.problems.clear()


def test_what_is_missing_is_said(browser: Browser, pages: Path) -> None:
    browser.problems.clear()
    browser.screen(1000, 800)
    browser.open(pages / "poor" / "index.html")
    text = browser.evaluate("document.body.innerText")
    for part in ("No images are there", "not counted", "No run has both a size and a quality", "No run was analysed",
                 "No training of these runs", "no LR and HR images", "0.50"):
        assert part in text
    assert browser.problems == []
