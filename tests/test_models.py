"""Models on the command line: import, export, score, generate and chat, by asset, by imported name and by path; nothing half-written."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import chatml_files, equal, made, made_reward, sentencepiece_files, small
from click.testing import CliRunner, Result

from cli import main
from model.formats import read_checkpoint
from model.huggingface import write_huggingface
from model.meta import write_meta
from model.tokenizer_files import PIECES
from model.weights import load, load_llama
from resources.disk import whole_folder
from resources.errors import TampuError
from resources.imports import import_checkpoint, imported
from resources.store import ArtifactStore
from resources.verification import verify

torch.set_num_threads(1)


def call(*arguments: str | Path, text: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=text)


def failed(*arguments: str | Path) -> str:
    """The one line of a command that a person can mend."""
    done = call(*arguments)
    assert done.exit_code == 1, done.output
    assert "Traceback" not in done.output and len(done.output.strip().splitlines()) == 1, done.output
    return done.output


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAMPU_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder with a byte-level tokenizer and a chat template."""
    write_huggingface(made(small(), spread=2.0), chatml_files(), tmp_path / "outside")
    return tmp_path / "outside"


def hidden(path: Path) -> list[str]:
    """Leftovers of what was being written."""
    return [one.name for one in path.rglob(".*.tmp")] if path.exists() else []


def test_an_import_is_the_same_model_under_a_name_and_says_where_it_came_from(home: Path, folder: Path) -> None:
    said = json.loads(call("import", folder, "--name", "guest", "--json").output)
    assert (said["format"], said["kind"], said["reused"]) == ("huggingface", "llama", False)
    found = imported(home, "guest")
    assert equal(load(found.path), read_checkpoint(folder).model)
    assert {one["name"] for one in found.origin["read"]} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert "already imported" in call("import", folder, "--name", "guest").output
    answers = [
        call("generate", model, "--prompt", "kalo mi", "--temperature", "0", "--max-new-tokens", "8").output for model in ("guest", folder)
    ]
    assert answers[0] == answers[1]
    assert not hidden(home)
    assert call("verify").exit_code == 0


def test_a_changed_import_is_found_and_refused(home: Path, folder: Path) -> None:
    call("import", folder, "--name", "guest")
    path = imported(home, "guest").path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    (finding,) = verify(ArtifactStore(home=str(home)))
    assert "guest" in finding.thing and "SHA-256" in finding.problem
    path.write_bytes(bytes(content[:-5]))
    assert "import it again" in failed("generate", "guest", "--prompt", "kalo")
    (path.parent / "origin.json").write_text("{}")
    assert "import it again" in failed("generate", "guest", "--prompt", "kalo")
    (finding,) = verify(ArtifactStore(home=str(home)))
    assert "guest" in finding.thing


def test_names_that_are_taken_or_none_are_refused(home: Path, folder: Path, tmp_path: Path) -> None:
    call("import", folder, "--name", "guest")
    write_huggingface(made(small(), seed=1), chatml_files(), tmp_path / "other")
    assert "belongs to another checkpoint" in failed("import", tmp_path / "other", "--name", "guest")
    assert "a name begins with" in failed("import", folder, "--name", "../guest")
    said = failed("generate", "nobody", "--prompt", "kalo")
    assert "'nobody'" in said and "guest" in said


@pytest.mark.parametrize("damage", ["truncated", "missing", "another architecture", "another tokenizer"])
def test_a_bad_checkpoint_is_told_in_one_line_and_leaves_nothing(home: Path, folder: Path, damage: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-9])
        expected = ["model.safetensors", "expected", "found"]
    elif damage == "missing":
        weights.unlink()
        expected = ["model.safetensors", "no such file"]
    elif damage == "another architecture":
        config.write_text(config.read_text().replace("LlamaForCausalLM", "MistralForCausalLM"))
        expected = ["config.json", "architectures", "MistralForCausalLM"]
    else:
        config.write_text(config.read_text().replace('"vocab_size": 400', '"vocab_size": 512'))
        expected = ["vocab_size", "512", "400"]
    said = failed("import", folder, "--name", "guest")
    assert all(part in said for part in expected), said
    assert not (home / "imported" / "guest").exists() and not hidden(home)


def test_an_import_that_is_interrupted_leaves_nothing(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("resources.imports.pretty_json", stop)
        with pytest.raises(KeyboardInterrupt):
            import_checkpoint(home, folder, "guest")
    assert os.listdir(home / "imported") == []


def test_a_folder_appears_whole_and_what_a_dead_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".new.999999999.tmp").mkdir()
    (tmp_path / ".other.999999999.tmp").mkdir()
    with whole_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.999999999.tmp", "new"]


def test_an_asset_is_exported_with_its_own_tokenizer_and_loads_in_transformers(demo_copy: ArtifactStore, tmp_path: Path) -> None:
    assert call("export", "rlhf/chat_model@v2", tmp_path / "hf").exit_code == 0
    ours = load_llama(demo_copy.current("rlhf/chat_model", "v2", "micro").path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    batch = torch.tensor([tokenizer.apply_chat_template([{"role": "user", "content": "Tell me something."}])["input_ids"]])
    with torch.no_grad():
        assert (ours(batch) - theirs(batch).logits).abs().max() < 1e-4
    pieces = demo_copy.current("tokenizer/sentencepiece", None, "micro").file("tokenizer.model").read_bytes()
    assert (tmp_path / "hf" / PIECES).read_bytes() == pieces
    assert call("export", "sft/model:first_epoch", tmp_path / "meta", "--format", "meta").exit_code == 0
    first = load_llama(demo_copy.current("sft/model", None, "micro").path, name="first_epoch")
    assert equal(read_checkpoint(tmp_path / "meta").model, first)
    assert call("export", "reward/safety@v1", tmp_path / "reward").exit_code == 0
    assert transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").config.num_labels == 1
    assert "not an empty folder" in failed("export", "sft/model", tmp_path / "hf")
    assert "there is no model 'sft/nonsense'" in failed("export", "sft/nonsense", tmp_path / "none")
    assert "is a reward model" in failed("export", "reward/safety@v1", tmp_path / "none", "--format", "meta")
    assert not (tmp_path / "none").exists() and not hidden(tmp_path)


def test_what_a_format_cannot_say_leaves_no_folder(home: Path, folder: Path, tmp_path: Path) -> None:
    assert "export it as hf" in failed("export", folder, tmp_path / "meta", "--format", "meta")
    assert not (tmp_path / "meta").exists() and not hidden(tmp_path)


def test_meta_folders_take_a_context(home: Path, tmp_path: Path) -> None:
    write_meta(made(small()), sentencepiece_files(), tmp_path / "meta", shards=2)
    said = json.loads(call("import", tmp_path / "meta", "--name", "guest", "--context", "77", "--json").output)
    assert (said["format"], said["context"]) == ("meta", 77)
    assert load(imported(home, "guest").path).config.max_context == 77
    assert "belongs to another checkpoint" in failed("import", tmp_path / "meta", "--name", "guest")


def test_completions_are_scored_as_transformers_scores_them(home: Path, folder: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "kalo mi", "completion": " taru", "id": 7},
        {"prompt": "", "completion": "日本 🙂"},
        {"prompt": "ends with a space ", "completion": "wan"},
        {"prompt": "kal", "completion": "o mita 123"},
    ]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for prompt in ("kalo", "kalo mi", "taru no", "wan", "日本", "se pi lo", "123", "chay"):
        ids = tokenizer.encode(prompt)
        with torch.no_grad():
            likeliest = int(theirs(torch.tensor([ids])).logits[0, -1].argmax())
        completion = tokenizer.decode([likeliest])
        if completion and tokenizer.encode(prompt + completion) == [*ids, likeliest]:
            rows.append({"prompt": prompt, "completion": completion})
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    said = call("score", folder, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl").output
    assert f"{len(rows)} rows" in said
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, one in zip(rows, scored, strict=True):
        assert row.items() <= one.items()
        prompt, whole = tokenizer.encode(row["prompt"]), tokenizer.encode(row["prompt"] + row["completion"])
        cut = next(i for i in range(len(whole)) if prompt[i : i + 1] != whole[i : i + 1])
        ids = whole if cut else [tokenizer.bos_token_id, *whole]
        with torch.no_grad():
            logits = theirs(torch.tensor([ids])).logits[0, :-1].double()
        targets = torch.tensor(ids[1:])
        chosen = logits.log_softmax(-1).gather(1, targets[:, None])[-one["tokens"] :]
        assert one["tokens"] == len(whole) - cut
        assert one["logprob"] == pytest.approx(float(chosen.sum()), abs=1e-4)
        assert one["greedy"] == bool((logits.argmax(-1) == targets)[-one["tokens"] :].all())
    assert [one["greedy"] for one in scored[4:]] == [True] * len(scored[4:]) and len(scored) > 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{broken", "in.jsonl:2: this is no JSON"),
        ('{"prompt": "a"}', "'completion' is no text"),
        ('{"prompt": 3, "completion": "b"}', "'prompt' is no text"),
        ('{"prompt": "a", "completion": ""}', "the completion is empty"),
        ('{"prompt": "\\ud800", "completion": "b"}', "lone surrogate"),
        (json.dumps({"prompt": "x" * 500, "completion": "b"}), "a context of 96"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named_and_nothing_is_written(home: Path, folder: Path, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' + line + "\n")
    output = failed("score", folder, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert said in output and "in.jsonl:2" in output
    assert not (tmp_path / "out.jsonl").exists()


def test_generate_continues_text_or_answers_and_chat_keeps_the_dialogue(home: Path, folder: Path) -> None:
    options = ["--temperature", "0", "--max-new-tokens", "6"]
    raw = json.loads(call("generate", folder, "--prompt", "kalo mi", "--raw", "--json", *options).output)["answer"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = torch.tensor([tokenizer.encode("kalo mi")])
    made_ = theirs.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, prompt.shape[1] :]
    assert raw == tokenizer.decode(made_, skip_special_tokens=True)
    talk = call("chat", folder, *options, "--system", "be brief", text="kalo\nmi\n\n")
    assert talk.exit_code == 0 and talk.output.count("model:") == 2
    assert "reserved" in failed("generate", folder, "--prompt", "a <|im_end|> b")
    assert "can not be answered" in failed("generate", folder, "--prompt", "x" * 400)


def test_a_reward_model_writes_no_text(home: Path, tmp_path: Path) -> None:
    write_huggingface(made_reward(small()), sentencepiece_files(), tmp_path / "reward")
    assert "reward model" in failed("generate", tmp_path / "reward", "--prompt", "kalo")
    assert "reward model" in failed("score", tmp_path / "reward", "--input", tmp_path / "in", "--output", tmp_path / "out")


def test_a_disk_that_is_full_is_told_and_nothing_is_left(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("resources.disk.fsync_tree", full)
        with pytest.raises(TampuError, match="is full"):
            import_checkpoint(home, folder, "guest")
    assert os.listdir(home / "imported") == []
