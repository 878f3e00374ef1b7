"""What the command line does with one model: find it, export it, score with it, talk to it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.collect import resolve_variant
from resources.disk import disk_troubles, whole_folder, write_whole
from resources.environment import active_profile
from resources.errors import TampuError
from resources.imports import imported, names
from resources.manifests import Artifact
from resources.prompts.prompt import Messages
from resources.rounds import round_names
from resources.store import ArtifactStore

if TYPE_CHECKING:
    from model.chat import ChatFormat
    from model.llama import Llama
    from model.reward import RewardModel

TOKENIZER = "tokenizer/sentencepiece"
FORMATS = ("hf", "meta")


@dataclass(frozen=True)
class OpenModel:
    """A model with its tokenizer, whatever it came from. `reference` is what it was asked for as."""

    reference: str
    network: "Llama | RewardModel"
    tokenizer: dict[str, bytes]

    @cached_property
    def chat(self) -> "ChatFormat":
        """Its tokenizer and chat format. Raises TampuError where they cannot be read."""
        from model.tokenizer_files import open_chat

        try:
            return open_chat(self.tokenizer, self.reference)
        except ValueError as error:
            raise TampuError(str(error)) from None

    @property
    def language_model(self) -> "Llama":
        """The network in fp32. Raises TampuError for a reward model."""
        from model.llama import Llama

        if not isinstance(self.network, Llama):
            raise TampuError(f"{self.reference} is a reward model: it gives a score to a dialogue and no text; name a language model")
        return self.network.float().eval()


def open_model(store: ArtifactStore, reference: str = "") -> OpenModel:
    """`asset[@round][:weights]`, an imported name, or a path of a checkpoint; default the latest chat model (before rounds `sft/model`).

    An asset comes with the tokenizer that it was made with. Raises TampuError.
    """
    import definitions  # noqa: F401  declares every asset
    from model.formats import read_checkpoint
    from model.tokenizer_files import read_tokenizer
    from model.weights import load
    from resources.recipe import DECLARED

    profile = active_profile()
    if not reference:
        made = [name for name in round_names(store, profile) if store.has_current("rlhf/chat_model", name, profile)]
        reference = f"rlhf/chat_model@{made[-1]}" if made else "sft/model"
    try:
        if reference.partition(":")[0].partition("@")[0] in DECLARED:
            variant = resolve_variant(store, profile, reference)
            return OpenModel(
                reference, load(variant.artifact.path, name=variant.weights), read_tokenizer(_tokenizer_of(store, variant.artifact).path)
            )
        if reference in names(store.root):
            found = imported(store.root, reference)
            return OpenModel(reference, load(found.path), read_tokenizer(found.path))
        if Path(reference).expanduser().exists():
            checkpoint = read_checkpoint(Path(reference).expanduser())
            return OpenModel(reference, checkpoint.model, checkpoint.tokenizer)
    except ValueError as error:
        raise TampuError(f"model {reference}: {error}") from None
    known = ", ".join(names(store.root)) or "none"
    raise TampuError(
        f"there is no model {reference!r}: name an asset such as sft/model or rlhf/chat_model@v1, an imported checkpoint ({known}), "
        "or the path of a checkpoint"
    )


def _tokenizer_of(store: ArtifactStore, artifact: Artifact) -> Artifact:
    """The tokenizer that an artifact was made with."""
    for one in artifact.manifest["inputs"]:
        if one["asset"] == TOKENIZER:
            return store.open(TOKENIZER, one["key"], one["partition"])
    raise TampuError(f"{artifact.label} was made without {TOKENIZER}: it is no model")


def export_model(store: ArtifactStore, reference: str, directory: Path, *, layout: str, shards: int = 1) -> list[Path]:
    """Write a model as a folder of Hugging Face's or Meta's format, all of it or nothing; returns its files.

    `shards` are Meta's. Raises TampuError for a folder that has something in it, and for what a format cannot say.
    """
    from model.huggingface import write_huggingface
    from model.meta import write_meta

    directory = directory.expanduser().absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise TampuError(f"{directory} is there already and not an empty folder: name another")
    model = open_model(store, reference)
    try:
        with disk_troubles(directory.parent), whole_folder(directory) as temporary:
            if layout == "hf":
                write_huggingface(model.network, model.tokenizer, temporary)
            else:
                write_meta(model.language_model, model.tokenizer, temporary, shards=shards)
    except ValueError as error:
        raise TampuError(f"{reference} can not be exported as {layout}: {error}") from None
    return sorted(directory.iterdir())


def score_file(store: ArtifactStore, reference: str, source: Path, target: Path) -> int:
    """Add `logprob` (nats, summed over the completion's tokens), `tokens` and `greedy` to every {"prompt", "completion"} of a JSONL file.

    Returns the number of rows; blank lines are left out. Raises TampuError, naming the line, and then writes nothing.
    """
    from model.likelihood import encode_pair, loglikelihoods

    rows: list[dict[str, Any]] = []
    pairs = []
    model = open_model(store, reference)
    network, tokenizer = model.language_model, model.chat.tokenizer
    for number, line in enumerate(_lines(source), start=1):
        if not line.strip():
            continue
        place = f"{source}:{number}"
        row = _row(line, place)
        try:
            pair = encode_pair(tokenizer, row["prompt"], row["completion"])
        except ValueError as error:
            raise TampuError(f"{place}: {error}") from None
        size, longest = len(pair[0]) + len(pair[1]), network.config.max_context
        if size > longest:
            raise TampuError(
                f"{place}: prompt and completion have {size} tokens, and {reference} has a context of {longest}: shorten the prompt"
            )
        rows.append(row)
        pairs.append(pair)
    found = loglikelihoods(network, pairs)
    lines = [
        json.dumps({**row, "logprob": logprob, "tokens": len(continuation), "greedy": greedy}, ensure_ascii=False) + "\n"
        for row, (_, continuation), (logprob, greedy) in zip(rows, pairs, found, strict=True)
    ]
    with disk_troubles(target.absolute().parent):
        write_whole(target.absolute(), "".join(lines).encode(), durable=False)
    return len(rows)


def _lines(source: Path) -> list[str]:
    try:
        return source.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise TampuError(f"{source} can not be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TampuError(f"{source}: byte {error.start} is no UTF-8; save the file as UTF-8") from None


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TampuError(f"{place}: this is no JSON ({error})") from None
    for key in ("prompt", "completion"):
        if not isinstance(row, dict) or not isinstance(row.get(key), str):
            raise TampuError(f'{place}: expected an object {{"prompt": text, "completion": text}}, and {key!r} is no text in it')
    return row


def answerer(model: OpenModel, *, temperature: float, top_p: float, max_new_tokens: int, raw: bool = False) -> Callable[[Messages, int], str]:
    """A function from a dialogue and a seed to the model's answer; `raw` continues the last message as text, without the chat format."""
    from model.generation import generate
    from model.sampling import SamplingParameters

    network, chat = model.language_model, model.chat
    tokenizer = chat.tokenizer
    parameters = SamplingParameters(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)

    def answer(messages: Messages, seed: int) -> str:
        try:
            if raw:
                prompt = [tokenizer.bos_id] * tokenizer.adds_bos + tokenizer.encode(messages[-1]["content"])
                made = generate(network, [prompt], parameters, [seed], eos_id=tokenizer.eos_id)[0].tokens
                return tokenizer.decode(made)
            made = generate(network, [chat.prompt(messages)], parameters, [seed], eos_id=tokenizer.eos_id)[0].tokens
            return chat.answer(made)
        except ValueError as error:
            raise TampuError(f"the message can not be answered: {error}") from None

    return answer


def streamer(model: OpenModel, *, temperature: float, top_p: float, max_new_tokens: int) -> Callable[[Messages, int], Iterator[str]]:
    """As `answerer`, the answer piece by piece; it ends where the model begins to write the next turn itself."""
    from resources.sampler import LocalSampler, Sampling

    sampler = LocalSampler(model.language_model, model.chat)
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, stop=tuple(model.chat.tags))

    def answer(messages: Messages, seed: int) -> Iterator[str]:
        try:
            yield from sampler.stream(messages, sampling, seed=seed, precision="fp32")
        except ValueError as error:
            raise TampuError(f"the message can not be answered: {error}") from None

    return answer
