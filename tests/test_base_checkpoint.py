"""A base model from outside: the profile names an imported checkpoint, and the graph goes on with its tokenizer and chat format."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch
from checkpoints import chatml_files, equal, made, made_reward, sentencepiece_files, small
from conftest import Demo

from jobs.collect import collect
from jobs.launch import run_assets
from jobs.models import open_model
from jobs.stages import accept_inbox, names_of, open_next
from model.chat import TemplateChat
from model.huggingface import write_huggingface
from model.tokenizer_files import open_tokenizer
from model.weights import load_llama
from resources.errors import TampuError
from resources.imports import import_checkpoint
from resources.lineage import tree
from resources.profiles import PROFILES, load_profile
from resources.store import ArtifactStore
from resources.verification import verify

torch.set_num_threads(1)


def test_the_profile_smol_names_its_checkpoint_and_a_file_may(tmp_path: Path) -> None:
    assert PROFILES["smol"].base_checkpoint == "smollm2-135m"
    path = tmp_path / "mine.toml"
    path.write_text('base = "micro"\nbase_checkpoint = "guest"\n')
    assert load_profile(str(path)).base_checkpoint == "guest"
    path.write_text("base_checkpoint = 3\n")
    with pytest.raises(TampuError, match="base_checkpoint = 3, expected a text"):
        load_profile(str(path))


@pytest.fixture(scope="module")
def guest(finished_demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that has learned which bytes are frequent, with a byte-level tokenizer and a ChatML template, as others publish them."""
    documents = finished_demo.store.current("corpus/filtered", None, "micro").frame("documents.parquet")
    ids = open_tokenizer(chatml_files(), "guest").encode("\n".join(documents["text"].head(40)))[:8192]
    model = made(small(layers=2, max_context=512), spread=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows_bt = torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)
    for batch_bt in rows_bt.split(8):
        loss = torch.nn.functional.cross_entropy(model(batch_bt)[:, :-1].flatten(0, 1), batch_bt[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("outside") / "guest"
    write_huggingface(model, chatml_files(), folder)
    return folder


@pytest.fixture(scope="module")
def home(finished_demo: Demo, guest: Path, tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """A home that has the demo's corpus and the guest."""
    root = tmp_path_factory.mktemp("guest") / "home"
    for part in ("artifacts/corpus", "current/micro/corpus"):
        shutil.copytree(finished_demo.store.root / part, root / part)
    import_checkpoint(root, guest, "guest")
    return ArtifactStore(home=str(root))


def overrides(**names: str) -> dict[str, dict[str, Any]]:
    return {asset: {"checkpoint": names[asset.split("/")[0]]} for asset in ("tokenizer/sentencepiece", "pretraining/base_model")}


def test_the_graph_goes_on_from_an_imported_checkpoint(home: ArtifactStore, guest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = overrides(tokenizer="guest", pretraining="guest")
    with dg.DagsterInstance.ephemeral() as instance:
        run_assets(home, instance, names_of((), None), overrides=chosen)
        collect(home, models=("sft/model", "sft/model:first_epoch"), week=1)
        accept_inbox(home, instance)
        open_next(home, instance)
        run_assets(home, instance, names_of((), "v1"), partition="v1", overrides=chosen)

    base = home.current("pretraining/base_model", None, "micro")
    guest_path = home.root / "imported" / "guest"
    assert equal(load_llama(base.path), load_llama(guest_path))
    written = {one["name"]: one["sha256"] for one in json.loads((guest_path / "origin.json").read_text())["written"]}
    assert {one["name"]: one["sha256"] for one in base.manifest["raw_files"]} == {
        name: written[name] for name in ("config.json", "model.safetensors")
    }
    source = hashlib.sha256((guest / "model.safetensors").read_bytes()).hexdigest()
    assert source in base.manifest["notes"]["imported"] and str(guest) in base.manifest["notes"]["imported"]
    assert written["model.safetensors"][:12] in json.dumps(tree(home, "sft/model", None, "micro"))
    tokenizer = home.current("tokenizer/sentencepiece", None, "micro")
    assert {"tokenizer.json", "tokenizer_config.json"} <= {entry["name"] for entry in tokenizer.manifest["files"]}
    assert not any(entry["name"] == "tokenizer.model" for entry in tokenizer.manifest["files"])

    monkeypatch.setenv("TAMPU_HOME", str(home.root))
    chat = open_model(home, "rlhf/chat_model@v1")
    assert isinstance(chat.chat, TemplateChat)
    assert not equal(chat.network, load_llama(base.path))
    card = home.current("evaluation/report", "v1", "micro").file("model_card.md").read_text()
    assert "begun with the imported checkpoint `guest`" in card
    assert verify(home) == []


def test_a_checkpoint_that_cannot_be_the_base_model_is_refused(home: ArtifactStore, tmp_path: Path) -> None:
    write_huggingface(made_reward(small()), sentencepiece_files(), tmp_path / "reward")
    import_checkpoint(home.root, tmp_path / "reward", "judge")
    wanted = ["tokenizer/sentencepiece", "pretraining/tokens", "pretraining/base_model"]
    for chosen, said in (
        (overrides(tokenizer="nobody", pretraining="nobody"), "tampu import PATH --name nobody"),
        (overrides(tokenizer="judge", pretraining="judge"), "'judge' is a reward model"),
        (overrides(tokenizer="", pretraining="guest"), "set tokenizer/sentencepiece.checkpoint to 'guest' too"),
    ):
        with dg.DagsterInstance.ephemeral() as instance, pytest.raises(TampuError) as caught:
            run_assets(home, instance, wanted, overrides=chosen)
        assert said in str(caught.value)
