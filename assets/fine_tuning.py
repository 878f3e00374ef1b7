"""Fine-tuning a base model on dialogues, shared by `sft/model`, `rlhf/policy` and their ablations."""

import json
from typing import TYPE_CHECKING

import polars as pl

from assets.plots import losses
from resources.recipe import Check, Run

if TYPE_CHECKING:
    from assets.sft import FineTuningConfig
    from model.dialogue import Example
    from model.llama import Llama
    from model.packing import Packed
    from model.tokenizer import Tokenizer

COMPARED = 32  # held-out examples whose loss is measured packed and alone
TOLERANCE = 1e-4  # relative: fp32 sums in another order

MASK_CHECKS = [
    Check("loss_on_answers_only", blocking=True, description="learned tokens are exactly answers and their EOS"),
    Check("mask_not_all_ones", blocking=True, description="no packed example has its question learned too"),
    Check("mask_not_all_zeros", blocking=True, description="every packed example has something to learn"),
    Check("eos_learned", blocking=True, description="every packed example ends with EOS, and learns it"),
    Check("packed_loss_equals_unpacked_loss", blocking=True, description="packed examples have the loss that they have alone"),
]


def fine_tune(run: Run, config: "FineTuningConfig", examples: pl.DataFrame, *, held_out_check: str) -> None:
    """Train `pretraining/base_model` on `examples` and write the weights of the last and of the first epoch.

    `examples` has columns split, messages (JSON), learn ("answers" or "last", the part of a dialogue that is learned) and repeats
    (copies an epoch). Reports `MASK_CHECKS` and the check `held_out_check`.
    """
    from model.causal_lm import CausalLM, PackedLoader, mean_loss
    from model.packing import pack
    from model.tokenizer_files import load_chat
    from model.training import Optimization, fit
    from model.weights import load_llama, save_llama

    chat = load_chat(run.parent("tokenizer/sentencepiece").path)
    network = load_llama(run.parent("pretraining/base_model").path)
    parts = {}
    wrong = too_long = 0
    for split in ("train", "validation"):
        encoded = []
        for row in examples.filter(pl.col("split") == split).iter_rows(named=True):
            messages = json.loads(row["messages"])
            example = chat.example(messages, learn=row["learn"])
            if len(example.tokens) > config.context:
                too_long += 1
                continue
            answers = [m["content"].strip() for m in messages if m["role"] == "assistant"]
            wrong += learned_answers(chat.tokenizer, example) != (answers if row["learn"] == "answers" else answers[-1:])
            encoded += [example] * (row["repeats"] if split == "train" else 1)
        parts[split] = encoded
    run.metric("longer_than_context", too_long)
    run.check("loss_on_answers_only", passed=wrong == 0, description=f"{wrong} rows whose learned tokens are not the answers with their EOS")
    held_out = pack(parts["validation"], config.context, seed=0)
    before, _ = mean_loss(network, held_out)
    train = pack(parts["train"], config.context, seed=config.seed)
    check_masks(run, network, train, chat.tokenizer.eos_id, parts["validation"][:COMPARED], config.context)
    loader = PackedLoader(train, config.batch, seed=config.seed)
    steps = loader.steps(config.epochs)
    result = fit(
        CausalLM(network, Optimization(learning_rate=config.learning_rate, steps=steps, warmup_steps=int(config.warmup_share * steps))),
        loader,
        steps=steps,
        seed=config.seed,
        precision=config.precision,
        log_every=config.log_every,
        progress=run.label,
        checkpoints_at=[loader.steps(1)],
        on_checkpoint=lambda step: save_llama(network, run.directory, name="first_epoch"),
        resume=run.resume(config.execution),
        execution=run.execution(config.execution),
    )
    save_llama(network, run.directory)
    after, _ = mean_loss(network, held_out)
    run.rows(
        "training_metrics",
        [*result.rows, {"step": steps, "tokens": result.tokens, "metric": "validation_answer_loss", "value": after}],
    )
    run.metric("validation_answer_loss", after)
    run.metric("examples", sum(len(part) for part in parts.values()))
    run.metric("steps", steps)
    run.check(held_out_check, passed=after < before, description=f"{before:.3f} before, {after:.3f} after (nats a token)")
    run.plot("loss", losses(result.rows))


def check_masks(run: Run, network: "Llama", train: "Packed", eos_id: int, some: "list[Example]", context: int) -> None:
    """Report what must hold for the rows as the network is trained on them, after packing, where a mask may have got lost."""
    from model.causal_lm import packed_and_alone
    from model.packing import mask_faults

    faults = mask_faults(train, eos_id)
    for name, count in (
        ("mask_not_all_ones", faults.all_ones),
        ("mask_not_all_zeros", faults.all_zeros),
        ("eos_learned", faults.eos_not_learned),
    ):
        run.check(name, passed=count == 0, description=f"{count} of {faults.examples} examples break it", examples=count)
    packed, alone = packed_and_alone(network, some, context)
    passed = abs(packed - alone) <= TOLERANCE * max(1.0, alone)
    description = f"{packed:.6f} packed, {alone:.6f} alone (nats a token, {len(some)} held-out examples)"
    run.check("packed_loss_equals_unpacked_loss", passed=passed, description=description, packed=packed, alone=alone)


def learned_answers(tokenizer: "Tokenizer", example: "Example") -> list[str]:
    """The texts of an example's learned tokens, one for each run that ends with EOS; a run that does not is marked."""
    texts: list[str] = []
    ids: list[int] = []
    for token, learn in zip(example.tokens, example.learn, strict=True):
        if learn and token == tokenizer.eos_id:
            texts.append(tokenizer.decode(ids).strip())
            ids = []
        elif learn:
            ids.append(token)
    return [*texts, f"without EOS: {tokenizer.decode(ids)}"] if ids else texts
