"""What the command line does beside running assets: choosing them, the inbox, opening rounds, the demo, the scoreboard."""

from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg

from jobs.collect import collect
from jobs.growth import growth, waiting
from jobs.launch import run_assets
from resources.environment import active_profile
from resources.errors import TampuError
from resources.guard import Guarded, SafetyGuard
from resources.inbox import batches_in
from resources.prompts.prompt import Messages
from resources.rounds import BATCHES, ROUNDS, Round, load_round, open_round, round_names
from resources.store import ArtifactStore


def names_of(select: Sequence[str], round_name: str | None) -> list[str]:
    """Asset names of a selection: the ones named, or all that rounds reuse, or all of a round. Unknown names are refused."""
    import definitions  # noqa: F401  declares every asset
    from resources.recipe import DECLARED

    for name in select:
        if name not in DECLARED:
            raise TampuError(f"there is no asset {name!r}; the assets are {', '.join(sorted(DECLARED))}")
        if DECLARED[name].partitions == "round" and round_name is None:
            raise TampuError(f"{name} has one partition a round: say which with --round, such as --round v1")
        if DECLARED[name].partitions is None and round_name is not None:
            raise TampuError(f"{name} does not belong to a round: leave --round {round_name} out")
    if select:
        return list(select)
    wanted = None if round_name is None else "round"
    return [name for name, one in DECLARED.items() if one.partitions == wanted and not name.startswith("ablations/")]


def accept_inbox(store: ArtifactStore, instance: dg.DagsterInstance) -> list[str]:
    """Make a batch of every file of the inbox; returns their names. Files already accepted are reused, changed ones refused.

    A file with the content of another one is no batch of its own.
    """
    profile = active_profile()
    inside = waiting(store, profile)
    if inside.problems:
        raise TampuError("; ".join(inside.problems))
    accepted = [batch for batch in batches_in(store.root) if batch in inside.new or store.has_current("preferences/batches", batch, profile)]
    for batch in accepted:
        instance.add_dynamic_partitions(str(BATCHES.name), [batch])
        run_assets(store, instance, ["preferences/batches"], partition=batch)
    return accepted


def open_next(store: ArtifactStore, instance: dg.DagsterInstance) -> Round:
    """Open the next round and add its partition. Refused when nothing is new since the last."""
    profile = active_profile()
    if round_names(store, profile) and growth(store, profile).new == 0:
        raise TampuError("no comparison is new since the last round: `tampu collect` makes some, `tampu ingest FILE` takes yours")
    opened = open_round(store, profile)
    instance.add_dynamic_partitions(str(ROUNDS.name), [opened.round])
    return opened


# The demo: which two variants are compared before each round.
WEEKS = (("sft/model", "sft/model:first_epoch"), ("rlhf/chat_model@v1", "rlhf/policy@v1:first_epoch"))
QUERIES = (
    "SELECT round, model, opponent, axis, round(win_rate, 3) AS win_rate, n FROM win_rates_current WHERE judge = 'annotator' ORDER BY ALL",
    "SELECT round, model, suite, metric, round(value, 3) AS value, n FROM safety_current WHERE category = 'all' ORDER BY ALL",
    "SELECT asset, metric, max(step) AS steps, last(value ORDER BY step) AS final FROM training_metrics_current GROUP BY ALL ORDER BY ALL",
)


def demonstrate(store: ArtifactStore, instance: dg.DagsterInstance, say: Callable[[str], Any]) -> None:
    """The recipe with its two rounds. What is already there is reused; rounds that stand on other versions are refused."""
    profile = active_profile()
    say(f"profile {profile}, everything is kept in {store.root}")
    say("\nfoundation: corpus, tokenizer, base model, SFT, prompts")
    run_assets(store, instance, names_of((), None))
    for week, (first, second) in enumerate(WEEKS, start=1):
        say(f"\nweek {week}: preferences between {first} and {second}")
        made = collect(store, models=(first, second), week=week)
        say(f"{'reused' if made.reused else 'collected'} {made.batch}: {made.comparisons} comparisons")
        accept_inbox(store, instance)
        name = f"v{week}"
        if name in round_names(store, profile):
            _same_start(store, profile, name)
            instance.add_dynamic_partitions(str(ROUNDS.name), [name])
        else:
            open_next(store, instance)
        say(f"\nround {name}")
        run_assets(store, instance, names_of((), name), partition=name)
    board = scoreboard(store, None)
    say("\n" + board["text"])
    say(f"\nreport with pictures and the model card:  {board['page']}")
    say("\nopen the UI:  make ui   (http://127.0.0.1:3000)")
    say("ask duckdb:")
    for query in QUERIES:
        say(f'  tampu query "{query}"')


def _same_start(store: ArtifactStore, profile: str, name: str) -> None:
    """Refuse a round that was opened from another chat model than the current one of the round before."""
    record = load_round(store, profile, name)
    before = record.previous["round"]
    current = store.current("rlhf/chat_model", before, profile) if before else store.current("sft/model", None, profile)
    pinned = record.pinned("rlhf/chat_model")
    if pinned is None or pinned["data_version"] != current.data_version:
        raise TampuError(
            f"round {name} was opened from another version of {current.asset} than the current one (code or config changed since): "
            f"start in a new TAMPU_HOME, or go on by hand with `tampu collect` and `tampu round`"
        )


def latest_round(store: ArtifactStore, profile: str, asset: str) -> str:
    """The latest round in which `asset` was made."""
    names = [name for name in round_names(store, profile) if store.has_current(asset, name, profile)]
    if not names:
        raise TampuError(f"{asset} has not been made in any round yet: `tampu demo` runs the whole recipe")
    return names[-1]


def scoreboard(store: ArtifactStore, round_name: str | None) -> dict[str, Any]:
    """The scores of a round's report, the same as text, and the paths of its page and model card."""
    profile = active_profile()
    name = round_name or latest_round(store, profile, "evaluation/report")
    report = store.current("evaluation/report", name, profile)
    text = report.file("scoreboard.txt").read_text(encoding="utf-8")
    return {"scores": report.json("scoreboard.json"), "text": text, "page": report.file("report.html"), "card": report.file("model_card.md")}


def guard_answer(store: ArtifactStore, messages: Messages, answer: str) -> Guarded:
    """What the latest safety reward model as a guard lets through."""
    profile = active_profile()
    reward = store.current("reward/safety", latest_round(store, profile, "reward/safety"), profile)
    tokenizer = store.current("tokenizer/sentencepiece", None, profile)
    return SafetyGuard(reward.path, tokenizer.path).reply([messages], [answer])[0]
