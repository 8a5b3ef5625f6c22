"""The report in a headless Chromium: what it computes is what `mess.evaluate` says, and it can be used."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import mess
from mess import cli, search_verb, verbs

CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def searched(run_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(run_folder, folder)
    verbs.calibrate_run(folder, split="test", latency_rounds=0)
    search_verb.search_run(folder)
    return folder


@pytest.fixture(scope="module")
def page_file(searched, tmp_path_factory) -> Path:
    return verbs.report_run(searched, tmp_path_factory.mktemp("html") / "report.html")


@pytest.fixture(params=WIDTHS)
def page(request, page_file):
    """The page at a width; that nothing was said on the console and nothing was asked from elsewhere is checked."""
    if CHROMIUM is None:
        pytest.skip("needs chromium (apt-get install chromium), or its path in CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": request.param, "height": 900})
        said, asked = [], []
        opened.on("console", lambda message: said.append(message.text))
        opened.on("pageerror", lambda error: said.append(str(error)))
        opened.on("request", lambda request: asked.append(request.url[:60]))
        opened.goto(page_file.as_uri())
        opened.wait_for_selector("#tradeoff .main-svg")
        yield opened
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def shown(page):
    return page.evaluate("window.messReport")


def check_against(table, configuration, state):
    """What the page says, against Python."""
    report = mess.evaluate(configuration, table)
    assert state["accuracy"] == pytest.approx(float(np.nanmean(report.iou)), abs=1e-12)
    assert state["cost"] == pytest.approx(report.cost, rel=1e-12)
    assert [n / len(table.images) for n in state["leaving"]] == pytest.approx(list(report.shares))
    ours = [np.nan if value is None else value for value in state["iou"]]
    np.testing.assert_allclose(ours, report.iou, atol=1e-12)


@pytest.mark.slow
def test_every_configuration_on_every_split(page, searched):
    found = verbs.configurations(searched)
    for split in ("val", "test"):
        table = mess.CalibrationTable.load(searched / f"table-{split}.safetensors")
        page.select_option("#split", split)
        for number, configuration in enumerate(found.values()):
            page.select_option("#configuration", str(number))
            assert shown(page)["split"] == split
            check_against(table, configuration, shown(page))


@pytest.mark.slow
def test_sliders_recompute(page, searched):
    table = mess.CalibrationTable.load(searched / "table-val.safetensors")
    found = verbs.configurations(searched)
    number, configuration = next((i, c) for i, c in enumerate(found.values()) if len(c.exits) > 1)
    page.select_option("#configuration", str(number))
    before = page.inner_text("#values")
    for kind, position, change in (
        ("image", "0.25", {"image_threshold": 0.25}),
        ("pixel", "3", {"pixel_threshold": table.pixel_thresholds[3]}),
    ):
        page.locator(f"input[data-gate='0'][data-kind='{kind}']").fill(position)
        changed = dataclasses.replace(configuration.exits[0], **change)
        configuration = dataclasses.replace(configuration, exits=(changed, *configuration.exits[1:]))
        check_against(table, configuration, shown(page))
    assert shown(page)["exits"][0]["image"] == 0.25
    assert shown(page)["exits"][0]["pixel"] == 3
    slider = page.locator("input[data-gate='0'][data-kind='image']")
    slider.focus()
    page.keyboard.press("ArrowRight")  # a step of the slider, by keyboard
    assert shown(page)["exits"][0]["image"] == pytest.approx(0.2505)
    page.locator("#reset").press("Enter")
    assert page.inner_text("#values") == before


@pytest.mark.slow
def test_a_click_selects(page):
    page.select_option("#configuration", "0")
    page.locator("#tradeoff").scroll_into_view_if_needed()
    point = page.locator("#tradeoff .scatterlayer .trace").nth(1).locator(".point").first  # the front's cheapest
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function("document.querySelector('#tradeoff .hoverlayer').textContent.includes('of the cost')")
    page.mouse.down()
    page.mouse.up()
    page.wait_for_function("document.querySelector('#configuration').value !== '0'")
    chosen = int(page.input_value("#configuration"))
    assert chosen > 0
    costs = page.evaluate("data.configurations.map((c) => evaluated(table(), resolved(c)).cost)")
    names = page.evaluate("data.configurations.map((c) => c.name)")
    assert costs[chosen] == min(cost for cost, name in zip(costs, names, strict=True) if not name)


@pytest.mark.slow
def test_it_is_readable(page):
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert "Is a plain smaller network" in page.inner_text("main h2 >> nth=0")
    assert page.inner_text("#answer").startswith(("Yes: ", "No: ", "There is none"))
    assert page.evaluate("[...document.images].every((image) => image.alt && image.naturalWidth > 0)")
    assert page.locator("article.sample").count() >= 2
    reached = set()
    page.locator("body").press("Tab")
    for _ in range(12):
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.dataset.kind"))
        page.keyboard.press("Tab")
    assert {"configuration", "split", "reset"} <= reached


def test_text_of_a_run_ends_no_script(searched, tmp_path):
    """A class called like an end of script is text."""
    table = mess.CalibrationTable.load(searched / "table-val.safetensors")
    names = ("</script><script>alert(1)</script>", *table.class_names[1:])
    other = tmp_path / "run"
    shutil.copytree(searched, other)
    dataclasses.replace(table, class_names=names).save(other / "table-val.safetensors")
    text = verbs.report_run(other, tmp_path / "r.html", num_samples=0).read_text()
    assert "alert(1)" in text
    assert "<script>alert(1)" not in text


def test_the_verb(searched, tmp_path):
    runner = CliRunner()
    out = tmp_path / "r.html"
    told = runner.invoke(cli.app, ["report", str(searched), "-o", str(out), "--cost", "macs", "--json"])
    assert told.exit_code == 0, told.output
    assert out.stat().st_size > 1e6
    missing = runner.invoke(cli.app, ["report", str(searched), "-o", str(out), "--cost", "watts"])
    assert "cost: expected one of" in str(missing.exception)
    folder = runner.invoke(cli.app, ["report", str(searched), "-o", str(tmp_path)])
    assert "out: expected the name of a file to write, got the folder" in str(folder.exception)
