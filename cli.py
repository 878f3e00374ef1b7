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
@click.option("--format", "layout", default="auto", show_default=True, help="`auto`, or a format's name (docs/data.md lists them)")
@click.option("--name", help="batch name; default: the file's name")
@click.option("--source", help="name of the public set; default: the format's name")
@click.option("--safety/--no-safety", default=None, help="whether the prompts are adversarial, for rows that do not say")
@click.option("--rating", help="rating of sets that only say which answer is better; default: negligibly better (margin 0)")
@click.option("--dry-run", is_flag=True, help="check and show, place nothing")
@click.option("--json", "as_json", is_flag=True)
@_clear
def ingest(
    file: Path, layout: str, name: str | None, source: str | None, safety: bool | None, rating: str | None, dry_run: bool, as_json: bool
) -> None:
    """Check a file of comparisons or demonstrations, show what was understood, and place it into the inbox."""
    from jobs.ingest import FORMATS, described
    from jobs.ingest import ingest as take_in
    from resources.annotator import RATINGS

    if layout not in FORMATS:
        raise TampuError(f"--format {layout}: choose one of {', '.join(FORMATS)}")
    if rating is not None and rating not in RATINGS:
        raise TampuError(f"--rating {rating!r}: choose one of {', '.join(RATINGS)}")
    options = {"source": source, "is_safety": safety, "rating": rating, "dry_run": dry_run}
    found = take_in(_store(), file, layout=layout, name=name, **options)  # type: ignore[arg-type]
    _say(vars(found), as_json, described(found))


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


@main.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="what to call it here")
@click.option("--context", type=click.IntRange(min=1), help="longest sequence in tokens, for Meta's format, which does not say; default: 4096")
@click.option("--json", "as_json", is_flag=True)
@_clear
def import_model(path: Path, name: str, context: int | None, as_json: bool) -> None:
    """Keep a Llama checkpoint under a name: a Hugging Face folder, a folder of Meta's, or a GGUF file."""
    from resources.imports import import_checkpoint

    found, reused = import_checkpoint(_store().root, path, name, context=context)
    text = f"{name}: {found.origin['parameters']:,} parameters from {found.origin['path']} ({found.origin['format']})"
    _say({"name": name, "reused": reused, **found.origin}, as_json, text + (", already imported" if reused else ""))


@main.command()
@click.argument("model")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--format", "layout", type=click.Choice(["hf", "meta"]), default="hf", show_default=True)
@click.option(
    "--shards", type=click.IntRange(min=1), default=1, show_default=True, help="files of Meta's format, one a GPU of tensor parallelism"
)
@click.option("--json", "as_json", is_flag=True)
@_clear
def export(model: str, directory: Path, layout: str, shards: int, as_json: bool) -> None:
    """Write MODEL into a new folder that transformers, vLLM or Meta's code load."""
    from jobs.models import export_model

    files = export_model(_store(), model, directory, layout=layout, shards=shards)
    _say(
        {"directory": str(directory), "files": [file.name for file in files]}, as_json, f"{directory}: {', '.join(file.name for file in files)}"
    )


@main.command()
@click.argument("model")
@click.option("--input", "source", required=True, type=click.Path(path_type=Path), help='lines of {"prompt": text, "completion": text}')
@click.option("--output", "target", required=True, type=click.Path(path_type=Path), help="the same lines with logprob, tokens and greedy")
@click.option("--json", "as_json", is_flag=True)
@_clear
def score(model: str, source: Path, target: Path, as_json: bool) -> None:
    """How likely MODEL finds given completions: log-probability in nats, number of tokens, and whether greedy decoding gives them."""
    from jobs.models import score_file

    count = score_file(_store(), model, source, target)
    _say({"rows": count, "output": str(target)}, as_json, f"{count} rows in {target}")


def _sampling(command: Callable[P, R]) -> Callable[P, R]:
    """MODEL and the options of every command that samples."""
    for decorate in (
        click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="tokens an answer at most"),
        click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=0.9, show_default=True),
        click.option("--temperature", type=click.FloatRange(min=0), default=0.7, show_default=True, help="0 takes the likeliest token"),
        click.argument("model", default=""),
    ):
        command = decorate(command)
    return command


@main.command()
@_sampling
@click.option("--prompt", required=True, help="the message; with --raw, the text to continue")
@click.option("--raw", is_flag=True, help="continue the prompt as text, without the chat format")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--guard", "guarded", is_flag=True, help="refuse where the safety reward model finds the message or the answer unsafe")
@click.option("--json", "as_json", is_flag=True)
@_clear
def generate(
    model: str, prompt: str, raw: bool, temperature: float, top_p: float, max_new_tokens: int, seed: int, guarded: bool, as_json: bool
) -> None:
    """Answer one message with MODEL: asset[@round][:weights], an imported name or a path; default the latest chat model."""
    from jobs.models import answerer, open_model
    from jobs.stages import guard_answer

    if raw and guarded:
        raise TampuError("--guard reads a message and its answer, --raw has neither: leave one of them out")
    store = _store()
    opened = open_model(store, model)
    talk = answerer(opened, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, raw=raw)
    messages = [{"role": "user", "content": prompt}]
    answer = talk(messages, seed)
    found: dict[str, Any] = {"model": opened.reference, "prompt": prompt, "answer": answer}
    if guarded:
        reply = guard_answer(store, messages, answer)
        found |= {**vars(reply), "answer": reply.text}
    _say(found, as_json, found["answer"])


@main.command()
@_sampling
@click.option("--system", help="a system message before the talk")
@_clear
def chat(model: str, system: str | None, temperature: float, top_p: float, max_new_tokens: int) -> None:
    """Talk to MODEL (as for `generate`); an empty line ends the talk."""
    from jobs.models import open_model, streamer

    talk = streamer(open_model(_store(), model), temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    while text := click.prompt("you", default="", show_default=False).strip():
        messages.append({"role": "user", "content": text})
        answer = ""
        click.echo("model: ", nl=False)
        for piece in talk(messages, len(messages)):
            click.echo(piece if answer else piece.lstrip(), nl=False)
            answer += piece
        click.echo()
        messages.append({"role": "assistant", "content": answer.strip() or "..."})


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
