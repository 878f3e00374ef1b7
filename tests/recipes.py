"""A small graph with rounds, for tests: batches from an inbox, a dataset, samples and a chat model a round."""

import dagster as dg
from homes import artifact

from resources.recipe import Artifact, Check, Request, Run
from resources.rounds import Round, open_round


class Starting(dg.Config):
    """Config of an asset that starts at a later round."""

    from_round: int = 2


@artifact("sft/model")
def sft(run: Run) -> None:
    """The first chat model."""
    run.write_json("model.json", "sft")
    run.rows("training_metrics", [{"step": 1, "tokens": 8, "metric": "train_loss", "value": 2.5}])


@artifact(
    "preferences/batches",
    partitions="batch",
    files=lambda request: {f"{request.partition}.jsonl": _file(request)},
    checks=[Check("readable", blocking=True)],
)
def batches(run: Run) -> None:
    """One file of the inbox."""
    text = run.file(f"{run.partition}.jsonl").read_text()
    run.write_json("rows.json", text.split())
    run.check("readable", passed="broken" not in text)


def _file(request: Request):  # type: ignore[no-untyped-def]
    return request.home / "inbox" / f"{request.partition}.jsonl"


@artifact("preferences/dataset", partitions="round", parents=["preferences/batches"])
def dataset(run: Run) -> None:
    """All comparisons of the round."""
    rows = [row for batch in run.parents("preferences/batches") for row in batch.json("rows.json")]
    run.write_json("rows.json", rows)
    counts = {"turns": None, "tokens_example": None, "tokens_prompt": None, "tokens_response": None, "quarantined": 0}
    run.rows("preference_batches", [{"batch": "all", "source": "people", "comparisons": len(rows), **counts}])


@artifact("rlhf/samples", partitions="round", parents=["preferences/dataset"], previous=["rlhf/chat_model"])
def samples(run: Run) -> None:
    """Drawn from the round before."""
    run.write_json("from.json", run.previous("rlhf/chat_model").reference())


@artifact(
    "rlhf/chat_model",
    partitions="round",
    parents=["rlhf/samples", "sft/model"],
    previous=["rlhf/chat_model", "reward/safety"],
    history=["rlhf/samples"],
)
def chat(run: Run) -> None:
    """The policy of the round."""
    older: list[Artifact] = run.history("rlhf/samples")
    assert run.round is not None
    run.write_json("model.json", {"round": run.round.round, "history": [one.partition for one in older]})
    run.write_json("previous.json", {"safety": run.has_previous("reward/safety")})
    run.rows("training_metrics", [{"step": 1, "tokens": 8, "metric": "train_loss", "value": 1.5}])


@artifact(
    "rlhf/ppo_policy",
    partitions="round",
    parents=["rlhf/chat_model"],
    starts_at_round=True,
    checks=[Check("improved")],
)
def ppo(run: Run, config: Starting) -> None:
    """Starts late."""
    run.write_json("model.json", run.parent("rlhf/chat_model").json("model.json"))
    run.check("improved", passed=False)


FOUNDATION = (sft,)
ROUND = (dataset, samples, chat, ppo)
GRAPH = (sft, batches, *ROUND)


def drop(home, batch: str, text: str = "a b c"):  # type: ignore[no-untyped-def]
    """Put a file into the inbox and make its batch."""
    folder = home.store.root / "inbox"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{batch}.jsonl").write_text(text)
    return home.make(*GRAPH, only=[batches], partition=batch, check=False)


def finish(home, name: str):  # type: ignore[no-untyped-def]
    """Make everything of a round."""
    return home.make(*GRAPH, only=ROUND, partition=name)


def next_round(home) -> Round:  # type: ignore[no-untyped-def]
    """Open a round and make everything of it."""
    record = open_round(home.store, "tiny")
    finish(home, record.round)
    return record


def foundation(home) -> None:  # type: ignore[no-untyped-def]
    """What all rounds stand on."""
    home.make(*GRAPH, only=FOUNDATION)
