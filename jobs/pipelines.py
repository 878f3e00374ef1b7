"""The jobs: what is made once, what is made each round, one batch, and the ablations."""

import dagster as dg

from resources.rounds import BATCHES, ROUNDS

FOUNDATION = dg.AssetSelection.groups("corpus", "tokenizer", "pretraining", "sft") | dg.AssetSelection.assets(
    "rlhf/prompts", "evaluation/contamination"
)
ROUND = dg.AssetSelection.groups("preferences", "reward", "rlhf", "evaluation") - dg.AssetSelection.assets(
    "preferences/batches", "rlhf/prompts", "evaluation/contamination"
)

foundation = dg.define_asset_job(
    "foundation", selection=FOUNDATION, description="Everything that rounds reuse: corpus, tokenizer, base model, SFT, prompts."
)
refresh = dg.define_asset_job(
    "refresh",
    selection=ROUND,
    partitions_def=ROUNDS,
    description="One round: reward models, samples, policies, evaluations, report.",
)
accept_batch = dg.define_asset_job(
    "accept_batch",
    selection=dg.AssetSelection.assets("preferences/batches"),
    partitions_def=BATCHES,
    description="Read one file of the inbox.",
)
ablations_once = dg.define_asset_job(
    "ablations",
    selection=dg.AssetSelection.groups("ablations") & dg.AssetSelection.assets("ablations/sft_without_safety"),
    description="Models that only serve a comparison and do not belong to a round.",
)
ablations_of_a_round = dg.define_asset_job(
    "ablations_of_a_round",
    selection=dg.AssetSelection.groups("ablations") - dg.AssetSelection.assets("ablations/sft_without_safety"),
    partitions_def=ROUNDS,
    description="The round's policy without Ghost Attention and without context distillation data.",
)
