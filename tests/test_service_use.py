"""The service as a person uses it: a digit drawn on its page, its own test, and predictions in bulk without it."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tasks.programs.mnist.digits.dataset_files import TEST_IMAGES, TEST_LABELS, read_idx, write_idx
from tests.pipeline import ROOT
from tests.registry import MODEL, Registry
from tests.running_service import RunningService
from tests.served_models import IMAGES, ServedModel, add_version, make_models
from tests.system_programs import find_program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass
class Learned:
    """A running service of a network that has learned digits."""

    folder: Path
    model: ServedModel
    service: RunningService


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learned]:
    folder = tmp_path_factory.mktemp("learned")
    (model,) = make_models(folder, "learned")
    registry = Registry(folder, folder)
    registry.tracker.set_alias(add_version(registry, model), "champion")
    for name in (TEST_IMAGES, TEST_LABELS):
        registry.services.store.put_bytes(f"datasets/mnist/some/{name}", (folder / name).read_bytes())
    running = RunningService(folder, registry.environment)
    try:
        running.start()
        yield Learned(folder, model, running)
    finally:
        running.kill()


def test_its_own_test_finds_the_registered_accuracy_and_draws_the_wrong_ones_in_red(learned: Learned) -> None:
    done = learned.service.command("test", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["images"], said["accuracy"], len(said["samples"])) == (500, learned.model.accuracy, 30)
    with Image.open(said["picture"]) as picture:
        reds = (np.asarray(picture) == (200, 0, 30)).all(axis=2).sum()
    assert bool(reds) == any(one["label"] != one["predicted"] for one in said["samples"])

    # Of other labels it is another accuracy, and those are wrong.
    others = learned.folder / "others"
    others.mkdir()
    images, labels = (read_idx((learned.folder / name).open("rb"), name) for name in (TEST_IMAGES, TEST_LABELS))
    write_idx(others / TEST_IMAGES, images)
    write_idx(others / TEST_LABELS, (labels + 1) % 10)
    done = learned.service.command("test", f"--data={others}")
    assert done.returncode == 1
    assert "and not the registered" in done.stdout
    assert "^" in done.stdout


def predict(learned: Learned, data: Path, *flags: str) -> list[dict[str, str]]:
    output = learned.folder / "predictions.csv"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "flows.predict", f"--model-name={MODEL}", f"--data={data}", f"--output={output}"]
    environment = {**os.environ, **learned.service.environment}
    done = subprocess.run([*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with output.open() as file:
        return list(csv.DictReader(file))


def test_predictions_in_bulk_are_those_of_the_model_each_with_its_item(learned: Learned) -> None:
    images = learned.folder / "images"
    images.mkdir()
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(images / f"{number:02}.png")
    found = predict(learned, images, "--probabilities")
    assert [row["item"] for row in found] == [f"{number:02}.png" for number in range(20)]
    assert [int(row["prediction"]) for row in found] == learned.model.digits
    shares = [[float(row[f"output_{number}"]) for number in range(10)] for row in found]
    np.testing.assert_allclose(shares, learned.model.shares, rtol=1e-5, atol=1e-6)
    found = predict(learned, learned.folder / TEST_IMAGES)
    labels = read_idx((learned.folder / TEST_LABELS).open("rb"), TEST_LABELS)
    assert np.mean([int(row["prediction"]) for row in found] == labels) == learned.model.accuracy


@pytest.fixture
def page(learned: Learned) -> Iterator[Page]:
    """Fails if the page asks anybody but the service, or has an error."""
    service = learned.service
    arguments = ["--disable-background-networking", "--disable-component-update", "--no-first-run", "--no-sandbox"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_program("chromium"), args=arguments)
        context = browser.new_context(
            viewport={"width": 900, "height": 1100}, http_credentials={"username": "anybody", "password": service.key}
        )
        asked: list[str] = []
        wrong: list[str] = []
        context.on("request", lambda request: asked.append(request.url))
        tab = context.new_page()
        tab.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(f"{service.address}/")
        yield tab
        browser.close()
    assert {url.startswith(service.address) for url in asked} == {True}
    assert [text for text in wrong if "favicon" not in text] == []


def draw(page: Page, *corners: tuple[int, int]) -> None:
    """Draw a line through these points of the canvas."""
    box = page.locator("canvas").bounding_box()
    assert box
    first, *others = [(box["x"] + x, box["y"] + y) for x, y in corners]
    page.mouse.move(*first)
    page.mouse.down()
    for corner in others:
        page.mouse.move(*corner, steps=15)
    page.mouse.up()


@pytest.mark.needs("chromium")
def test_a_drawn_7_is_answered_7(page: Page) -> None:
    expect(page.get_by_role("heading", name=f"{MODEL}, version 1")).to_be_visible()
    draw(page, (80, 70), (200, 70), (120, 230))
    expect(page.locator("#answer")).to_have_text("7")
    expect(page.locator("#shares")).to_contain_text("version 1")
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/service.png")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#answer")).to_have_text("")
    draw(page, (140, 50), (140, 230))
    expect(page.locator("#answer")).to_have_text("1")
    page.reload()
    expect(page.get_by_role("row", name="/score 200")).to_contain_text("2")
