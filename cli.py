"""`tampu`: the recipe from the command line. Heavy libraries are imported by the commands that need them."""

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from model.memory import keep_freed_memory
from resources.errors import TampuError

if TYPE_CHECKING:
    import dagster as dg

    from resources.store import ArtifactStore


P = ParamSpec("P")
R = TypeVar("R")


def _clear(command: Callable[P, R]) -> Callable[P, R]:
    """One line for what a person can mend; a traceback only for what is our fault."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except TampuError as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            click.echo("interrupted: the next run makes this asset again; a training goes on from its last saved state", err=True)
            raise SystemExit(130) from None

    return wrapped


def _store() -> "ArtifactStore":
    from resources.store import ArtifactStore
    from resources.warehouse import rebuild_views

    store = ArtifactStore()
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        rebuild_views(store)
    except OSError as error:
        raise TampuError(f"TAMPU_HOME {store.root} can not be written ({error.strerror}): choose another folder") from error
    return store


def _instance(store: "ArtifactStore") -> "dg.DagsterInstance":
    import dagster as dg

    from jobs.growth import dagster_home

    dagster_home(store)
    return dg.DagsterInstance.get()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Tampu: the Llama 2 recipe as a Dagster project."""
    keep_freed_memory()


@main.command()
@click.option("--select", multiple=True, help="asset names; default: everything that rounds reuse, or all of a round")
@click.option("--round", "round_name", help="the round, such as v1")
@click.option("--set", "settings", multiple=True, metavar="ASSET.KEY=VALUE", help="override a config value")
@click.option("--force", is_flag=True, help="compute even what is already there")
@_clear
def run(select: tuple[str, ...], round_name: str | None, settings: tuple[str, ...], force: bool) -> None:
    """Materialize assets."""
    from jobs.launch import config_keys, parse_overrides, run_assets
    from jobs.stages import names_of

    store = _store()
    overrides = parse_overrides(settings, config_keys())
    run_assets(store, _instance(store), names_of(select, round_name), partition=round_name, overrides=overrides, force=force)


@main.command()
@click.option("--models", required=True, help="two variants: asset[@round][:weights], separated by a comma")
@click.option("--week", required=True, type=click.IntRange(min=1))
@click.option("--comparisons", type=click.IntRange(min=1), help="pairs to sample; default by profile")
@click.option("--json", "as_json", is_flag=True)
@_clear
def collect(models: str, week: int, comparisons: int | None, as_json: bool) -> None:
    """Sample two models, have the simulated annotator rate the answers, drop the file into the inbox."""
    from jobs.collect import collect as collect_week

    pair = models.split(",")
    if len(pair) != 2:
        raise TampuError(f"--models {models}: name two variants, separated by a comma")
    made = collect_week(_store(), models=(pair[0], pair[1]), week=week, comparisons=comparisons)
    _say(vars(made), as_json, f"{made.batch}: {made.comparisons} comparisons" + (", already in the inbox" if made.reused else ""))


@main.command("round")
@click.option("--json", "as_json", is_flag=True)
@_clear
def open_next_round(as_json: bool) -> None:
    """Accept what is in the inbox and open the next round."""
    from jobs.stages import accept_inbox, open_next

    store = _store()
    instance = _instance(store)
    accept_inbox(store, instance)
    opened = open_next(store, instance)
    text = f"round {opened.round} is open with {len(opened.batches)} batches: run it with `tampu run --round {opened.round}`"
    _say({"round": opened.round, "batches": opened.batches, "previous": opened.previous}, as_json, text)


@main.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--name", help="batch name; default: the file's name")
@click.option("--json", "as_json", is_flag=True)
@_clear
def ingest(file: Path, name: str | None, as_json: bool) -> None:
    """Check a file of comparisons, show what was understood, and place it into the inbox."""
    from assets.preferences.schema import read_comparisons
    from resources.inbox import place

    if not file.is_file():
        raise TampuError(f"{file} does not exist")
    raw = file.read_bytes()
    result = read_comparisons(raw)
    if result.accepted.is_empty():
        raise TampuError(f"{file}: no comparison could be read; reasons: {result.reasons or 'the file is empty'}")
    path = place(_store().root, name or file.stem, raw)
    found = {"accepted": result.accepted.height, "quarantined": result.quarantined.height, "reasons": result.reasons, "file": str(path)}
    _say(found, as_json, f"{found['accepted']} accepted, {found['quarantined']} quarantined {result.reasons or ''}; placed as {path}")


@main.command()
@click.option("--round", "round_name", help="default: the latest round with a report")
@click.option("--json", "as_json", is_flag=True)
@_clear
def report(round_name: str | None, as_json: bool) -> None:
    """Print the scoreboard of a round, and where its page and model card lie."""
    from jobs.stages import scoreboard

    board = scoreboard(_store(), round_name)
    _say(board["scores"], as_json, f"{board['text']}\npage:       {board['page']}\nmodel card: {board['card']}")


@main.command()
@click.argument("sql")
@click.option("--json", "as_json", is_flag=True)
@_clear
def query(sql: str, as_json: bool) -> None:
    """Ask the warehouse (duckdb SQL over views; `SHOW TABLES` lists them)."""
    import duckdb
    import polars as pl

    from resources.warehouse import query as ask

    try:
        frame = ask(_store(), sql)
    except duckdb.Error as error:
        raise TampuError(f"query: {error}") from None
    if as_json:
        click.echo(frame.write_json())
        return
    with pl.Config(tbl_rows=100, tbl_cols=30, fmt_str_lengths=60, tbl_width_chars=200):
        click.echo(str(frame))


@main.command()
@click.argument("asset")
@click.option("--round", "round_name")
@click.option("--json", "as_json", is_flag=True)
@_clear
def lineage(asset: str, round_name: str | None, as_json: bool) -> None:
    """What an asset was made from, down to files, rounds and commits."""
    from resources.environment import active_profile
    from resources.lineage import render, tree

    found = tree(_store(), asset, round_name, active_profile())
    _say(found, as_json, render(found))


@main.command()
@click.option("--json", "as_json", is_flag=True)
@_clear
def verify(as_json: bool) -> None:
    """Re-hash everything that was made; exit status 1 if anything differs."""
    from resources.verification import verify as check

    findings = [vars(finding) for finding in check(_store())]
    lines = [f"{one['thing']}: {one['problem']} ({one['way_out']})" for one in findings] or ["everything is as its manifests say"]
    _say(findings, as_json, "\n".join(lines))
    if findings:
        raise SystemExit(1)


@main.command()
@click.argument("prompt")
@click.option("--model", "reference", default="", help="asset[@round][:weights]; default: the latest chat model")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.7, show_default=True)
@click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=0.9, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--guard", "guarded", is_flag=True, help="refuse where the safety reward model finds the message or the answer unsafe")
@click.option("--json", "as_json", is_flag=True)
@_clear
def generate(prompt: str, reference: str, temperature: float, top_p: float, seed: int, guarded: bool, as_json: bool) -> None:
    """Answer one message."""
    from jobs.stages import guard_answer, talker

    store = _store()
    messages = [{"role": "user", "content": prompt}]
    answer = talker(store, reference, temperature=temperature, top_p=top_p)(messages, seed)
    if not guarded:
        _say({"prompt": prompt, "answer": answer}, as_json, answer)
        return
    reply = guard_answer(store, messages, answer)
    _say({"prompt": prompt, "answer": reply.text, **vars(reply)}, as_json, reply.text)


@main.command()
@click.option("--model", "reference", default="", help="asset[@round][:weights]; default: the latest chat model")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.7, show_default=True)
@click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=0.9, show_default=True)
@_clear
def chat(reference: str, temperature: float, top_p: float) -> None:
    """Talk to a model; an empty line ends the talk."""
    from jobs.stages import talker

    talk = talker(_store(), reference, temperature=temperature, top_p=top_p)
    messages: list[dict[str, str]] = []
    while text := click.prompt("you", default="", show_default=False).strip():
        messages.append({"role": "user", "content": text})
        answer = talk(messages, len(messages))
        messages.append({"role": "assistant", "content": answer or "..."})
        click.echo(f"model: {answer}")


@main.command()
@click.argument("preset")
@click.option("--stage", default="pretraining", show_default=True, help="pretraining, sft, reward or ppo")
@click.option("--gpu", default="A100-80GB", show_default=True, help="A100-80GB, H100 or H200")
@click.option("--gpus", type=int, help="how many; default: the fewest that hold it")
@click.option("--mfu", type=float, help="model FLOPs utilization; default: the one that fits the paper's GPU-hours")
@click.option("--tokens", help="in all, such as 2e12 or 300B; default: the paper's")
@click.option("--sequence", type=int, help="tokens a sequence; default: the paper's, or the preset's context")
@click.option("--batch", type=int, help="sequences an update of all GPUs (PPO: an iteration); default: the paper's")
@click.option("--micro-batch", type=int, help="sequences a GPU reads at a time; default: 1 (reward: 2)")
@click.option("--json", "as_json", is_flag=True)
@_clear
def plan(preset: str, stage: str, gpu: str, tokens: str | None, mfu: float | None, as_json: bool, **sizes: int | None) -> None:
    """What a stage of a preset (7b, 70b, …) needs: memory a GPU, tokens/s, GPU-hours, kWh, tCO2e."""
    from model import planning

    try:
        total = None if tokens is None else planning.count(tokens)
        made = planning.plan(preset, stage, gpu=gpu, mfu=planning.MFU if mfu is None else mfu, tokens=total, **sizes)
    except ValueError as error:
        raise TampuError(str(error)) from None
    _say(made.to_dict(), as_json, planning.table(made))


@main.command()
@_clear
def demo() -> None:
    """The whole recipe on the embedded default: foundation, two weeks of preferences, two rounds, reports."""
    from jobs.stages import demonstrate

    store = _store()
    demonstrate(store, _instance(store), click.echo)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=3000, show_default=True)
@_clear
def ui(host: str, port: int) -> None:
    """Open Dagster's UI on the same storage and profile, sensors and schedule on."""
    from jobs.growth import dagster_home

    dagster_home(_store())
    workspace = Path(__file__).with_name("workspace.yaml")
    os.execv(sys.executable, [sys.executable, "-m", "dagster", "dev", "-w", str(workspace), "-h", host, "-p", str(port)])


def _say(value: Any, as_json: bool, text: str) -> None:
    click.echo(json.dumps(value, indent=2, default=str) if as_json else text)


if __name__ == "__main__":
    main()
