"""Dagster's real UI in a real browser, on a finished home: the graph, an asset's page, and a materialization from the page."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resources.store import ArtifactStore

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
REPOSITORY = Path(__file__).resolve().parent.parent

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


@pytest.fixture
def served(demo_copy: ArtifactStore) -> Iterator[str]:
    """The address of `tampu ui` on a copy of the finished home."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"TAMPU_HOME": str(demo_copy.root), "TAMPU_PROFILE": "micro"}
    with open(demo_copy.root / "ui.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "cli", "ui", "--port", str(port)],
            cwd=REPOSITORY,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: ask(url, "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }"), 90)
        wait_for(
            lambda: (
                [
                    entry["loadStatus"]
                    for entry in ask(url, "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus } } } }")["workspaceOrError"][
                        "locationEntries"
                    ]
                ]
                == ["LOADED"]
            ),
            90,
        )
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def test_the_graph_and_a_materialization_from_the_page(served: str) -> None:
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
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{served}/assets/rlhf/chat_model")
        page.get_by_text("The best of this round's rejection sampling policy").first.wait_for(timeout=60_000)
        page.goto(f"{served}/asset-groups")
        page.get_by_text("evaluation").first.wait_for(timeout=60_000)
        page.goto(f"{served}/assets/corpus/investigation")
        page.get_by_role("button", name="Materialize").first.click(timeout=60_000)
        page.get_by_role("button", name="Confirm").click(timeout=60_000)  # this event log is new, so the page warns of parents it never saw made
        runs = "{ runsOrError { ... on Runs { results { status assetSelection { path } } } } }"

        def finished() -> bool:
            found = ask(served, runs)["runsOrError"]["results"]
            return any(run["status"] == "SUCCESS" and run["assetSelection"] == [{"path": ["corpus", "investigation"]}] for run in found)

        wait_for(finished, 120)
        browser.close()
    assert errors == []


def test_sensors_and_schedule_are_on_and_telemetry_is_off(served: str) -> None:
    selector = {"repositoryName": "__repository__", "repositoryLocationName": "tampu"}
    query = """query($s: RepositorySelector!) {
        sensorsOrError(repositorySelector: $s) { ... on Sensors { results { name sensorState { status } } } }
        schedulesOrError(repositorySelector: $s) { ... on Schedules { results { name scheduleState { status } } } }
        instance { info } }"""
    found = ask(served, query, {"s": selector})
    states = {one["name"]: one["sensorState"]["status"] for one in found["sensorsOrError"]["results"]}
    states |= {one["name"]: one["scheduleState"]["status"] for one in found["schedulesOrError"]["results"]}
    assert {name: states[name] for name in ("inbox", "preference_growth", "weekly")} == {
        "inbox": "RUNNING",
        "preference_growth": "RUNNING",
        "weekly": "RUNNING",
    }
    settings = found["instance"]["info"].replace(" ", "")
    assert "telemetry:\nenabled:false" in settings and "nux:\nenabled:false" in settings
