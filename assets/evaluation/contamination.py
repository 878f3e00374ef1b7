"""Contamination of the test sets by the training corpus (paper, appendix A.6)."""

import json

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.evaluation.multiple_choice import answer_items, next_turn_items
from resources.profiles import active
from resources.recipe import Check, Run, artifact


class ContaminationConfig(dg.Config):
    """The paper's method; lengths beyond a sample's own find nothing."""

    min_lengths: list[int] = Field([10, 20, 30, 40, 50], description="a match must be longer than this many tokens")
    skip_budget: int = Field(4, ge=0, description="mismatched positions a match may hold")
    items: int = Field(active().multiple_choice_items, ge=2, description="next-turn items at most")
    seed: int = Field(active().seed, ge=0, description="as in `evaluation/benchmarks`, so that the items are the same")


@artifact(
    "evaluation/contamination",
    parents=["corpus/filtered", "pretraining/tokens", "pretraining/base_model", "rlhf/prompts", "tokenizer/sentencepiece"],
    kinds={"numpy", "polars"},
    owners=["team:evaluation"],
    checks=[Check("test_is_clean", blocking=False, description="no subset shows a benefit: not all four |Z| are above 2 at any length")],
)
def contamination(run: Run, config: ContaminationConfig) -> None:
    """Share of test tokens inside long matches with the training corpus, by sample; Z statistics of the four subsets for the task that
    has right and wrong answers; mean shares for the test prompts."""
    from assets.corpus import contamination as method
    from model.token_shards import TokenShards
    from model.tokenizer_files import load_tokenizer
    from model.weights import load_llama

    tokenizer = load_tokenizer(run.parent("tokenizer/sentencepiece").path)
    shards = TokenShards(run.parent("pretraining/tokens").path, "train").shards
    corpus = method.CorpusTokens(shards, border=tokenizer.bos_id)  # no match crosses from one document into the next
    conversations = run.parent("corpus/filtered").frame("conversations.parquet").filter(pl.col("split") == "test")
    items = next_turn_items(conversations, config.items, seed=config.seed)
    right = answer_items(load_llama(run.parent("pretraining/base_model").path), tokenizer, items)
    prompts = run.parent("rlhf/prompts").frame("prompts.parquet").filter(pl.col("split") == "test")
    samples = {
        "next turn of four": [np.array(tokenizer.encode(item.context + item.choices[item.answer])) for item in items],
        "test prompts": [np.array(tokenizer.encode(json.loads(text)[-1]["content"])) for text in prompts["messages"]],
    }
    matches = {name: method.find_matches(tokens, corpus, skip_budget=config.skip_budget) for name, tokens in samples.items()}
    rows: list[dict[str, object]] = []
    affected = []
    for length in config.min_lengths:
        for dataset, tokens in samples.items():
            shares = method.contaminated_share(matches[dataset], length)
            scored = dataset == "next turn of four"
            whole = {
                "subset": "all",
                "n": len(tokens),
                "contamination": float(np.mean(shares)),
                "mean": float(np.mean(right)) if scored else None,
            }
            subsets = method.subset_statistics(shares, np.array(right)) if scored else []
            rows += [
                {
                    "dataset": dataset,
                    "min_length": length,
                    **{name: row.get(name) for name in ("subset", "n", "contamination", "mean", "z")},
                }
                for row in (whole, *subsets)
            ]
            if subsets and method.affected(subsets):
                affected.append(length)
    run.rows("contamination", rows)
    table = pl.DataFrame(rows, infer_schema_length=None)
    run.table("shares and Z", table)
    run.metric("test_prompts_contaminated_share", float(table.filter(pl.col("dataset") == "test prompts")["contamination"].max()))  # type: ignore[arg-type]
    run.check("test_is_clean", passed=not affected, description=f"lengths at which all four |Z| exceed 2: {affected}")
