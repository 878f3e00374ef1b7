"""The wiring of Tampu: assets, checks, jobs, sensors, schedule and the artifact store, and nothing else."""

import dagster as dg

import assets.corpus.documents_asset
import assets.corpus.filtered_asset
import assets.corpus.investigation_asset
import assets.evaluation.answers
import assets.evaluation.benchmarks
import assets.evaluation.contamination
import assets.evaluation.ghost_attention
import assets.evaluation.human_ratings
import assets.evaluation.report
import assets.evaluation.reward_accuracy
import assets.evaluation.reward_hacking
import assets.evaluation.safety
import assets.evaluation.win_rates
import assets.preferences.batches
import assets.preferences.dataset
import assets.pretraining
import assets.reward
import assets.rlhf.ablations
import assets.rlhf.chat_model
import assets.rlhf.context_distillation_data
import assets.rlhf.ghost_attention_data
import assets.rlhf.policy
import assets.rlhf.ppo_policy
import assets.rlhf.prompts
import assets.rlhf.safety_scaling
import assets.rlhf.samples
import assets.sft
import assets.sft_data
import assets.tokenizer
from jobs import growth, pipelines
from model.memory import keep_freed_memory
from resources.store import ArtifactStore

ASSET_MODULES = [
    assets.corpus.documents_asset,
    assets.corpus.filtered_asset,
    assets.corpus.investigation_asset,
    assets.tokenizer,
    assets.pretraining,
    assets.sft,
    assets.sft_data,
    assets.preferences.batches,
    assets.preferences.dataset,
    assets.reward,
    assets.rlhf.prompts,
    assets.rlhf.samples,
    assets.rlhf.ghost_attention_data,
    assets.rlhf.context_distillation_data,
    assets.rlhf.policy,
    assets.rlhf.ppo_policy,
    assets.rlhf.chat_model,
    assets.rlhf.ablations,
    assets.rlhf.safety_scaling,
    assets.evaluation.answers,
    assets.evaluation.benchmarks,
    assets.evaluation.reward_accuracy,
    assets.evaluation.win_rates,
    assets.evaluation.safety,
    assets.evaluation.reward_hacking,
    assets.evaluation.ghost_attention,
    assets.evaluation.human_ratings,
    assets.evaluation.contamination,
    assets.evaluation.report,
]

keep_freed_memory()

defs = dg.Definitions(
    assets=dg.load_assets_from_modules(ASSET_MODULES),
    jobs=[
        pipelines.foundation,
        pipelines.refresh,
        pipelines.accept_batch,
        pipelines.ablations_once,
        pipelines.ablations_of_a_round,
        pipelines.safety_scaling_once,
        pipelines.safety_scaling_of_a_round,
        growth.collect_preferences,
    ],
    sensors=[growth.inbox, growth.preference_growth],
    schedules=[growth.weekly],
    resources={"store": ArtifactStore()},
    executor=dg.in_process_executor,
)
