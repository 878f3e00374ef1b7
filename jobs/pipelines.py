"""The jobs: what is made once, what is made each round, one batch, and the ablations."""

import dagster as dg

from assets.rlhf.safety_scaling import PERCENTS, name_of
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
SCALING_MODELS = dg.AssetSelection.assets(*(name_of(percent).split("/") for percent in PERCENTS))
SCALING = dg.AssetSelection.assets("ablations/safety_scaling")
ablations_once = dg.define_asset_job(
    "ablations",
    selection=dg.AssetSelection.groups("ablations") & dg.AssetSelection.assets("ablations/sft_without_safety"),
    description="Models that only serve a comparison and do not belong to a round.",
)
ablations_of_a_round = dg.define_asset_job(
    "ablations_of_a_round",
    selection=dg.AssetSelection.groups("ablations") - dg.AssetSelection.assets("ablations/sft_without_safety") - SCALING_MODELS - SCALING,
    partitions_def=ROUNDS,
    description="The round's policy without Ghost Attention and without context distillation data.",
)
safety_scaling_once = dg.define_asset_job(
    "safety_scaling_models", selection=SCALING_MODELS, description="SFT with 0 to 50 % of the safety data (the paper's Fig. 15); run it once."
)
safety_scaling_of_a_round = dg.define_asset_job(
    "safety_scaling",
    selection=SCALING,
    partitions_def=ROUNDS,
    description="Rewards, violations and false refusals by share of the safety data, under a round's reward models.",
)
