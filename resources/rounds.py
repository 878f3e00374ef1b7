"""Rounds: the paper's V1, V2, … as small immutable records that say what a round stands on.

Dagster forbids a cycle and the recipe has one: policies are sampled, people compare the samples, the next policy learns
from that. The loop closes here, outside the graph: a round's record pins, by key, the preference batches accepted so
far and the artifacts of the round before, and the assets of the round read exactly those.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg

from resources.disk import canonical_json, disk_troubles, pretty_json, sha256_text, write_once
from resources.errors import TampuError
from resources.manifests import Artifact
from resources.store import ArtifactStore

ROUNDS = dg.DynamicPartitionsDefinition(name="rounds")
BATCHES = dg.DynamicPartitionsDefinition(name="preference_batches")

BATCH_ASSET = "preferences/batches"
CHAT_MODEL = "rlhf/chat_model"
FIRST_CHAT_MODEL = "sft/model"
# Artifacts of the round before that a round may read; each is pinned when it is current as the round opens.
PREVIOUS = (CHAT_MODEL, "rlhf/policy", "reward/helpfulness", "reward/safety", "rlhf/samples")
# Assets of which a round may read every earlier round's artifact.
HISTORY = ("rlhf/samples", "rlhf/chat_model")

Reference = dict[str, str | None]


@dataclass(frozen=True)
class Round:
    """One round: what it may read beside its own assets, pinned by key.

    `batches` are {batch, key, data_version}; `previous["artifacts"]` maps an asset's name to the {asset, partition,
    key, data_version} that stands for it (`rlhf/chat_model` is `sft/model` for the first round); `history` maps an
    asset to such references of all earlier rounds, oldest first; `left_out` are batches that a check keeps out.
    """

    round: str
    number: int
    profile: str
    batches: list[dict[str, str]]
    previous: dict[str, Any]
    history: dict[str, list[Reference]]
    left_out: list[dict[str, str]]
    opened_at: str

    def pinned(self, asset: str) -> Reference | None:
        """The artifact of the round before that stands for `asset`, or None where there was none."""
        return self.previous["artifacts"].get(asset)


def round_name(number: int) -> str:
    """`v1` for 1."""
    return f"v{number}"


def round_path(store: ArtifactStore, profile: str, name: str) -> Path:
    """Where a round's record lies."""
    return store.root / "rounds" / profile / f"{name}.json"


def round_names(store: ArtifactStore, profile: str) -> list[str]:
    """Names of the profile's rounds, v1 first."""
    numbers = []
    for path in round_path(store, profile, "v1").parent.glob("v*.json"):
        if path.stem[1:].isdigit():
            numbers.append(int(path.stem[1:]))
    return [round_name(number) for number in sorted(numbers)]


def load_round(store: ArtifactStore, profile: str, name: str) -> Round:
    """A round's record. Raises TampuError when the round was not opened under this profile or its file is damaged."""
    path = round_path(store, profile, name)
    try:
        content = json.loads(path.read_text())
        stated = content.pop("record_sha256", None)
        record = Round(**content)
    except FileNotFoundError:
        known = ", ".join(round_names(store, profile)) or "none"
        raise TampuError(
            f"round {name!r} has no record under the profile {profile!r} (opened so far: {known}): open the next one with `tampu round`"
        ) from None
    except (ValueError, TypeError, AttributeError):
        raise TampuError(f"{path} is damaged: restore it from a copy, or open a new round with `tampu round`") from None
    if stated != sha256_text(canonical_json(content)):
        raise TampuError(f"{path} was edited after the round was opened, and a round never changes: restore it from a copy")
    if record.round != name or record.profile != profile:
        raise TampuError(f"{path} is the record of {record.round!r} of {record.profile!r}: put it back in its place")
    return record


def open_round(store: ArtifactStore, profile: str, batches: Sequence[str] | None = None) -> Round:
    """Open the next round of `profile` and return its record; the Dagster partition is the caller's to add.

    `batches` names the preference batches to stand on, by default all current ones that no blocking check keeps out.
    Raises TampuError when there is no batch, a named one is not sound, or the round before has no chat model.
    """
    names = round_names(store, profile)
    number = int(names[-1][1:]) + 1 if names else 1
    name, before = round_name(number), names[-1] if names else None
    chosen, left_out = _batches(store, profile, batches)
    record = Round(
        round=name,
        number=number,
        profile=profile,
        batches=chosen,
        previous={"round": before, "artifacts": _previous(store, profile, before)},
        history={asset: _history(store, profile, asset, names) for asset in HISTORY},
        left_out=left_out,
        opened_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    content = asdict(record)
    content["record_sha256"] = sha256_text(canonical_json(content))
    with disk_troubles(store.root):
        written = write_once(round_path(store, profile, name), pretty_json(content).encode())
    if not written:
        raise TampuError(f"round {name} was opened by another process just now: use that one, or open the next after it")
    return record


def _batches(store: ArtifactStore, profile: str, wanted: Sequence[str] | None) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Batches to stand on, and those that a blocking check keeps out."""
    chosen, left_out = [], []
    for batch in store.partitions(BATCH_ASSET, profile) if wanted is None else wanted:
        artifact = store.current(BATCH_ASSET, batch, profile)
        entry = {"batch": batch, "key": artifact.key, "data_version": artifact.data_version}
        failed = artifact.failed_check
        if failed is None:
            chosen.append(entry)
        elif wanted is None:
            left_out.append(entry | {"check": failed})
        else:
            raise TampuError(f"{artifact.label} failed its check {failed!r}: mend the file in the inbox, or leave it out")
    if not chosen:
        reason = "every batch failed a blocking check" if left_out else "there is no preference batch yet"
        raise TampuError(f"a round needs preferences, and {reason} under {profile!r}: `tampu collect` makes one")
    return chosen, left_out


def _previous(store: ArtifactStore, profile: str, before: str | None) -> dict[str, Reference]:
    """What the next round may read of the round before."""
    if before is None:
        return {CHAT_MODEL: _sound(store.current(FIRST_CHAT_MODEL, None, profile)).reference()}
    if not store.has_current(CHAT_MODEL, before, profile):
        raise TampuError(f"round {before} has no chat model yet, and the next round starts from it: finish it with `tampu run --round {before}`")
    pinned = {}
    for asset in PREVIOUS:
        if store.has_current(asset, before, profile):
            pinned[asset] = _sound(store.current(asset, before, profile)).reference()
    return pinned


def _history(store: ArtifactStore, profile: str, asset: str, names: Sequence[str]) -> list[Reference]:
    """The asset's artifacts of all earlier rounds that have one, oldest first."""
    made = [name for name in names if store.has_current(asset, name, profile)]
    return [_sound(store.current(asset, name, profile)).reference() for name in made]


def _sound(artifact: Artifact) -> Artifact:
    """The artifact itself. Raises TampuError when a blocking check of it failed."""
    if artifact.failed_check is not None:
        command = f"tampu run --select {artifact.asset}" + (f" --round {artifact.partition}" if artifact.partition else "")
        raise TampuError(
            f"{artifact.label} failed its check {artifact.failed_check!r}, so no round can stand on it: "
            f"mend its cause and make it again with `{command}`"
        )
    return artifact
