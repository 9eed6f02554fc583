"""The stack as a person with a browser uses it: the form, a run's page, its report, MLflow, the button that cancels."""

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.http_server import Behaviour, serving
from tests.pipeline import descendants, still_running, wait_until
from tests.stack import POLL_SECONDS, SMALL, Stack
from tests.system_programs import find_program

# The first of them waits for the stack as well, and all for a machine that may be busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.needs("chromium")]

# Chromium's own services look for news of themselves.
ARGUMENTS = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
# It refuses to sandbox root's pages.
ARGUMENTS += ["--disable-gpu", "--no-sandbox"]

PATIENCE_MS = 60_000
RUN_PATIENCE_MS = 400_000
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=find_program("chromium"), args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    """A tab of a person who has just logged in; fails if a page asked anybody but this machine."""
    user, password = stack.mlflow_key
    context = browser.new_context(
        viewport={"width": 1300, "height": 1600},
        # What a person answers when the browser asks.
        http_credentials={"username": user, "password": password, "origin": stack.mlflow_url},
    )
    context.set_default_timeout(PATIENCE_MS)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    tab = context.new_page()
    tab.goto(stack.prefect_url)
    tab.get_by_placeholder("admin:pass").fill(":".join(stack.key))
    tab.get_by_role("button", name="Login").click()
    expect(tab.get_by_role("link", name="Deployments").first).to_be_visible()
    yield tab
    context.close()
    assert asked
    assert [url for url in asked if not re.match(r"(http://(127\.0\.0\.1|localhost):|data:|blob:)", url)] == []


def open_form(page: Page, stack: Stack) -> None:
    deployment = stack.deployment("on-demand")["id"]
    page.goto(f"{stack.prefect_url}/v2/deployments/deployment/{deployment}/run")


def open_run(page: Page, stack: Stack, run_id: str) -> None:
    page.goto(f"{stack.prefect_url}/v2/runs/flow-run/{run_id}")


def show_newest_log(page: Page) -> None:
    """The page draws the first lines of a log alone, until one scrolls."""
    page.get_by_role("tab", name="Logs").click()
    page.get_by_role("combobox", name="log sort order").click()
    page.get_by_role("option", name="Newest to oldest").click()


def test_a_training_from_the_form_to_its_page_in_mlflow(stack: Stack, page: Page) -> None:
    name = f"from-the-form-{secrets.token_hex(3)}"
    open_form(page, stack)
    page.get_by_label("Run Name").fill(name)
    # Both must change: the small data set has not got the images of the defaults.
    page.get_by_role("spinbutton", name="epochs").fill("2")
    page.get_by_role("spinbutton", name="validation_images").fill("100")
    page.get_by_role("button", name="Submit").click()

    named = {"flow_runs": {"name": {"any_": [name]}}}
    wait_until(
        lambda: bool(stack.api("POST", "/flow_runs/filter", **named)),
        60,
        "the run that the form asks for",
        POLL_SECONDS,
    )
    (run,) = stack.api("POST", "/flow_runs/filter", **named)
    changed = {**stack.deployment("on-demand")["parameters"], **run["parameters"]}["hyperparameters"]
    assert (changed["epochs"], changed["validation_images"]) == (2, 100)
    assert set(changed) == set(SMALL) | {"seed"}

    open_run(page, stack, run["id"])
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible(timeout=RUN_PATIENCE_MS)
    # The page asks for them until the run has ended, and the server learns of the last ones later than of that.
    ours = {"flow_runs": {"id": {"any_": [run["id"]]}}, "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    wait_until(lambda: stack.api("POST", "/task_runs/count", **ours) == 6, 60, "the server to know of all six steps")
    page.reload()
    expect(page.get_by_text("6 Task runs").first).to_be_visible()
    show_newest_log(page)
    expect(page.get_by_text("The downloaded model has the run's test accuracy")).to_be_visible()
    page.get_by_role("tab", name="Artifacts").click()
    expect(page.get_by_role("link", name="Training, 2 epochs")).to_be_visible()
    page.get_by_role("link", name="Report: keras-dnn-mnist version").click()
    trained = stack.mlflow_run(run["id"])
    expect(page.get_by_role("link", name="models:/keras-dnn-mnist/")).to_be_visible()
    page.get_by_role("link", name=trained.run_id).click()

    expect(page).to_have_url(re.compile(f"^{re.escape(stack.mlflow_url)}/.*{trained.run_id}"))
    expect(page.get_by_text("Finished").first).to_be_visible()
    for parameter, value in (("epochs", 2), ("validation_images", 100)):
        expect(page.get_by_role("row", name=f"{parameter} {value}", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="keras-dnn-mnist").first).to_be_visible()
    expect(page.get_by_role("link", name=name)).to_have_attribute("href", re.compile(run["id"]))
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("outputs", exact=True).click()
    page.get_by_text("learning_curves.png").click()
    expect(page.get_by_role("img", name="outputs/learning_curves.png")).to_be_visible()


def test_a_page_of_another_origin_can_neither_ask_nor_be_answered(stack: Stack, page: Page) -> None:
    asked = """async ([address, method]) => {
        const options = {method, credentials: "include", headers: {"Content-Type": "application/json"}};
        try { return (await fetch(address, options)).status } catch (error) { return String(error) }
    }"""
    searched = f"{stack.mlflow_url}/ajax-api/2.0/mlflow/experiments/search?max_results=1"
    with serving({"page.html": b"<!doctype html><title>of another user of this machine</title>"}) as others:
        others.behaviour["page.html"] = Behaviour(content_type="text/html")
        # The browser has given MLflow its password by now, and would give it again.
        page.goto(f"{stack.mlflow_url}/?workflowType=machine_learning")
        assert page.evaluate(asked, [searched, "GET"]) == 200
        page.goto(f"{others.address}page.html")
        for address in (searched, f"{stack.prefect_api}/flow_runs/filter"):
            for method in ("GET", "POST"):
                assert "Failed to fetch" in page.evaluate(asked, [address, method])


def test_a_wrong_value_in_the_form_makes_no_run(stack: Stack, page: Page) -> None:
    before = stack.api("POST", "/flow_runs/count")
    open_form(page, stack)
    epochs = page.get_by_role("spinbutton", name="epochs")
    epochs.fill("0")
    page.get_by_role("button", name="Submit").click()
    assert epochs.evaluate("field => field.validationMessage"), "the browser let 0 epochs pass"
    epochs.fill("2")
    page.get_by_role("textbox", name="model_name").fill("no/name")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("does not match").first).to_be_visible()
    page.get_by_role("button", name="Select dataset").click()
    assert page.get_by_role("option").all_inner_texts() == ["mnist"]
    assert stack.api("POST", "/flow_runs/count") == before


SHAPES = """
name: shapes
entry_points:
  main:
    parameters:
      epochs: {type: int, default: 5, min: 1, max: 100, description: Passes over all images}
      filters: {type: int, default: 16, choices: [8, 16, 32]}
      flip: {type: bool, default: false}
    command: python train.py {epochs} {filters} {flip}
"""
WRITE_A_MODEL = """
import os, pathlib, sys
model = pathlib.Path(os.environ["OUTPUTS_FOLDER"]) / "model"
model.mkdir(parents=True)
(model / "weights.txt").write_text(" ".join(sys.argv[1:]))
"""


def test_the_form_of_a_program_has_what_its_mlproject_declares(stack: Stack, page: Page, tmp_path: Path) -> None:
    program = tmp_path / "shapes"
    program.mkdir()
    (program / "MLproject").write_text(SHAPES)
    (program / "train.py").write_text(WRITE_A_MODEL)
    done = stack.deploy_program(program, "--param=epochs=7")
    assert done.returncode == 0, done.stderr
    deployed = json.loads(done.stdout)
    ours = {"flow_runs": {"deployment_id": {"any_": [deployed["deployment_id"]]}}}

    page.goto(f"{deployed['url']}/run")
    epochs = page.get_by_role("spinbutton", name="epochs")
    expect(epochs).to_have_value("7")
    expect(page.get_by_text("Passes over all images. At least 1, at most 100.")).to_be_visible()
    epochs.fill("0")
    page.get_by_role("button", name="Submit").click()
    assert epochs.evaluate("field => field.validationMessage"), "the browser let 0 epochs pass"
    assert stack.api("POST", "/flow_runs/count", **ours) == 0
    epochs.fill("2")
    page.get_by_role("button", name="Select filters").click()
    assert page.get_by_role("option").all_inner_texts() == ["8", "16", "32"]
    page.get_by_role("option", name="8").click()
    page.get_by_role("switch", name="flip").click()
    page.get_by_role("button", name="Submit").click()

    wait_until(lambda: stack.api("POST", "/flow_runs/count", **ours) == 1, 60, "the run", POLL_SECONDS)
    (run,) = stack.api("POST", "/flow_runs/filter", **ours)
    assert run["parameters"]["parameters"] == {"epochs": 2, "filters": 8, "flip": True}
    assert stack.wait_for(run["id"])["state_name"] == "Completed", stack.flow_log(run["id"])
    assert (stack.home / "models" / "shapes" / "1" / "weights.txt").read_text() == "2 8 True"


def test_cancelling_on_the_runs_page_leaves_nothing_running(stack: Stack, page: Page) -> None:
    run_id = stack.start_long(seed=3)
    processes = descendants(stack.process_of(run_id).pid)
    assert any(one.cmdline()[-2:] == ["--standby", "train"] for one in processes)
    open_run(page, stack, run_id)
    show_newest_log(page)
    expect(page.get_by_text(re.compile(r"epoch \d+/1000")).first).to_be_visible()
    page.get_by_role("button", name="Open menu").click()
    page.get_by_role("menuitem", name="Cancel").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Cancel Flow Run").click()
    wait_until(lambda: stack.flow_run(run_id)["state_type"] != "RUNNING", 60, "the server to hear of it", POLL_SECONDS)
    wait_until(lambda: not still_running(processes), 30, "the processes to end")
    expect(page.get_by_text("Cancelled", exact=True).first).to_be_visible()
    assert stack.wait_for_both(run_id, 60) == ("Cancelled", "KILLED", "cancelled in Prefect")
    assert stack.deployment("on-demand")["global_concurrency_limit"]["active_slots"] == 0
