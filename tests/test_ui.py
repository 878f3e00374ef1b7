"""Dagster's real UI in a real browser, on a finished home: a file becomes a batch, pages show plots, a page starts a run.

`TAMPU_SCREENSHOTS=docs/images pytest tests/test_ui.py` also waits for the refresh that the new batch starts, and keeps the pictures.
"""

import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Demo

from resources.inbox import place

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
REPOSITORY = Path(__file__).resolve().parent.parent
SCREENSHOTS = Path(os.environ["TAMPU_SCREENSHOTS"]).resolve() if os.environ.get("TAMPU_SCREENSHOTS") else None
BATCH = "people-1"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def ask(url: str, query: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables or {}}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["data"]


def wait_for(what: Any, seconds: float) -> Any:
    """Poll until `what()` is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := what():
                return found
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"nothing within {seconds} s")


@dataclass(frozen=True)
class Served:
    """The address of `tampu ui` and the home that it shows."""

    url: str
    home: Path


@pytest.fixture(scope="module")
def served(finished_demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`tampu ui` (webserver and daemon) on a free port and a copy of the finished home, with a new file in its inbox."""
    home = tmp_path_factory.mktemp("ui") / "home"
    shutil.copytree(finished_demo.store.root, home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"TAMPU_HOME": str(home), "TAMPU_PROFILE": "micro"}
    with open(home / "ui.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "cli", "ui", "--port", str(port)],
            cwd=REPOSITORY,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    # While the server starts, so that the sensor's first tick finds it and the test need not wait for the second.
    place(home, BATCH, new_comparisons(home, 60))
    url = f"http://127.0.0.1:{port}"
    entries = "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }"
    try:
        wait_for(lambda: [entry["loadStatus"] for entry in ask(url, entries)["workspaceOrError"]["locationEntries"]] == ["LOADED"], 120)
        yield Served(url, home)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def new_comparisons(home: Path, count: int) -> bytes:
    """Comparisons of the first week with other answers, and a line that is none."""
    chance = random.Random(0)
    lines = (home / "inbox" / "week-1.jsonl").read_text().splitlines()
    rows = []
    for number in range(count):
        row = json.loads(chance.choice(lines))
        row["responses"][0]["text"] += f" {number}"
        rows.append(json.dumps(row))
    return ("\n".join([*rows, "{broken"]) + "\n").encode()


@pytest.fixture(scope="module")
def page(served: Served) -> Iterator[Any]:
    """A tab of a browser; a JavaScript error on any page fails the module."""
    from playwright.sync_api import sync_playwright

    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        tab = browser.new_page(viewport={"width": 1280, "height": 820})
        tab.set_default_timeout(60_000)
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        yield tab
        browser.close()
        assert errors == []


def runs(url: str) -> list[dict[str, Any]]:
    """All runs: id, job, status, assets and partition."""
    query = "{ runsOrError { ... on Runs { results { runId pipelineName status assetSelection { path } tags { key value } } } } }"
    return ask(url, query)["runsOrError"]["results"]


def green(url: str, job: str, partition: str) -> str | None:
    """The id of a job's finished run for a partition; an error if it failed."""
    for run in runs(url):
        if run["pipelineName"] == job and {"key": "dagster/partition", "value": partition} in run["tags"]:
            assert run["status"] not in ("FAILURE", "CANCELED"), run
            if run["status"] == "SUCCESS":
                return run["runId"]
    return None


def shoot(page: Any, name: str) -> None:
    """Keep the page as a picture of 256 colours, where somebody asked for it."""
    if SCREENSHOTS is None:
        return
    from PIL import Image

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    picture.convert("RGB").quantize(256).save(SCREENSHOTS / f"{name}.png", optimize=True)


def show_plot(page: Any, address: str, plot: str) -> None:
    """Open a plot on an asset's page and wait until the picture is drawn."""
    page.goto(address)
    page.get_by_placeholder("Filter metadata keys").fill(f"plot {plot}")
    page.get_by_text("[Show Markdown]").first.click()
    picture = page.locator(f"img[alt='{plot}']")
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 200


def test_a_file_in_the_inbox_becomes_a_batch_that_a_person_can_look_at(served: Served, page: Any) -> None:
    run = wait_for(lambda: green(served.url, "accept_batch", BATCH), 120)
    page.goto(f"{served.url}/locations/tampu/sensors/inbox")
    page.get_by_text("1 run requested").first.wait_for()
    shoot(page, "inbox-sensor")
    page.goto(f"{served.url}/runs/{run}")
    page.get_by_text("Success", exact=True).first.wait_for()
    page.get_by_text("preferences/batches").first.wait_for()
    asset = f"{served.url}/assets/preferences/batches?partition={BATCH}"
    page.goto(asset)
    page.get_by_text("One file of comparisons").first.wait_for()
    page.get_by_placeholder("Filter metadata keys").fill("quarantined")
    page.get_by_role("cell", name="1", exact=True).or_(page.get_by_text("1", exact=True)).first.wait_for()
    show_plot(page, asset, "ratings")
    shoot(page, "batch")


def test_the_graph_is_drawn_with_every_stage(served: Served, page: Any) -> None:
    page.goto(f"{served.url}/asset-groups")
    for group in ("corpus", "tokenizer", "pretraining", "sft", "preferences", "reward", "rlhf", "evaluation"):
        page.get_by_text(group, exact=True).first.wait_for()
    shoot(page, "lineage")
    page.goto(f"{served.url}/assets/rlhf/chat_model")
    page.get_by_text("The best of this round's rejection sampling policy").first.wait_for()


def test_an_asset_can_be_materialized_from_its_page(served: Served, page: Any) -> None:
    page.goto(f"{served.url}/assets/corpus/investigation")
    page.get_by_role("button", name="Materialize").first.click()
    page.get_by_role("button", name="Confirm").click()  # this event log is new, so the page warns of parents it never saw made
    wanted = [{"path": ["corpus", "investigation"]}]
    wait_for(lambda: any(run["status"] == "SUCCESS" and run["assetSelection"] == wanted for run in runs(served.url)), 120)


@pytest.mark.skipif(SCREENSHOTS is None, reason="takes minutes: set TAMPU_SCREENSHOTS to a folder for the pictures")
def test_enough_new_comparisons_refresh_everything_without_a_hand(served: Served, page: Any) -> None:
    run = wait_for(lambda: green(served.url, "refresh", "v3"), 400)
    page.goto(f"{served.url}/runs/{run}")
    page.get_by_text("Success", exact=True).first.wait_for()
    shoot(page, "refresh")
    show_plot(page, f"{served.url}/assets/preferences/dataset?partition=v3", "batches")
    shoot(page, "preferences")
    show_plot(page, f"{served.url}/assets/evaluation/reward_accuracy?partition=v3", "accuracy_by_test_set")
    shoot(page, "reward-accuracy")
    page.goto(f"{served.url}/assets/evaluation/reward_accuracy?view=checks")
    page.get_by_text("rises_with_rating").first.wait_for()
    shoot(page, "checks")


def test_sensors_and_schedule_are_on_and_telemetry_is_off(served: Served) -> None:
    selector = {"repositoryName": "__repository__", "repositoryLocationName": "tampu"}
    query = """query($s: RepositorySelector!) {
        sensorsOrError(repositorySelector: $s) { ... on Sensors { results { name sensorState { status } } } }
        schedulesOrError(repositorySelector: $s) { ... on Schedules { results { name scheduleState { status } } } }
        instance { info } }"""
    found = ask(served.url, query, {"s": selector})
    states = {one["name"]: one["sensorState"]["status"] for one in found["sensorsOrError"]["results"]}
    states |= {one["name"]: one["scheduleState"]["status"] for one in found["schedulesOrError"]["results"]}
    assert {name: states[name] for name in ("inbox", "preference_growth", "weekly")} == {
        "inbox": "RUNNING",
        "preference_growth": "RUNNING",
        "weekly": "RUNNING",
    }
    settings = found["instance"]["info"].replace(" ", "")
    assert "telemetry:\nenabled:false" in settings and "nux:\nenabled:false" in settings
