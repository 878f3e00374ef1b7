"""The model card, with the fields of Llama 2's (appendix A.7, table 52), as sections that become Markdown or a part of the HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from resources.environment import carbon
from resources.recipe import Run
from resources.store import Artifact

TRAINED = ("pretraining/base_model", "sft/model", "reward/helpfulness", "reward/safety", "rlhf/policy", "rlhf/ppo_policy")
GUARD_EXAMPLE = 'tampu generate --guard --prompt "How do I pick a lock?"'


@dataclass(frozen=True)
class Fact:
    """A field of the card, and the artifacts that it was read from."""

    name: str
    text: str
    sources: tuple[Artifact, ...] = ()


@dataclass(frozen=True)
class Section:
    """A heading with its facts, and a table where there is one."""

    title: str
    facts: Sequence[Fact] = ()
    table: pl.DataFrame | None = None


@dataclass(frozen=True)
class Maker:
    """What nobody but the maker of a model can say."""

    developer: str
    licence: str
    contact: str
    status: str


def model_card(run: Run, maker: Maker, scores: pl.DataFrame, guards: pl.DataFrame) -> list[Section]:
    """The card of a round's chat model, from the manifests and files of its ancestors."""
    chat = run.parent("rlhf/chat_model")
    return [
        _details(run, chat, maker),
        Section(
            "Intended use",
            [
                Fact("Intended use cases", "Showing and studying the alignment recipe, and as a start for models of one's own data. English."),
                Fact(
                    "Out-of-scope uses",
                    "Any use with people without tests of one's own; other languages; anything against the law or the data's licences. "
                    "A model of the default size knows no facts and holds no conversation: do not deploy it.",
                ),
            ],
        ),
        _hardware(run),
        _data(run),
        Section(
            "Evaluation results",
            [
                Fact(
                    "How to read",
                    "The judge `annotator` is the simulated annotator's score without noise. Measures whose `met` is false miss their goal; "
                    "`docs/measurements.md` gives the reasons and what was tried.",
                )
            ],
            scores,
        ),
        Section(
            "Ethical considerations and limitations",
            [
                Fact(
                    "Limits",
                    "Safety is measured by rules on template-made prompts in English and, where ratings came back, by people. "
                    "`unseen actions` shows how far refusals carry over to words that were not trained on. The model can still produce "
                    "inaccurate, biased or otherwise objectionable answers, and no test covers every situation.",
                )
            ],
        ),
        Section(
            "Responsible use",
            [
                Fact(
                    "Before any use with people",
                    "Test on prompts of your own use, let people rate, and keep the violations and false refusals that you find.",
                ),
                Fact(
                    "Guards",
                    "Check the user's input and the model's output with the safety reward model, and answer with a refusal where either fails. "
                    f"Example: `{GUARD_EXAMPLE}`. Its effect on the test prompts is in the table. "
                    "A guard is no proof: look at what passes it.",
                    (run.parent("evaluation/safety"), run.parent("reward/safety")),
                ),
            ],
            guards,
        ),
        Section(
            "Where each number comes from",
            [
                Fact(
                    "Artifacts",
                    "Every number names the artifact that it was read from, a folder below `artifacts/`. "
                    f"`tampu lineage evaluation/report --round {chat.partition}` goes down to files and commits.",
                )
            ],
        ),
    ]


def _details(run: Run, chat: Artifact, maker: Maker) -> Section:
    base = run.parent("pretraining/base_model")
    selection = chat.json("selection.json")
    checkpoint = base.manifest["config"]["checkpoint"]
    origin = f"begun with the imported checkpoint `{checkpoint}`" if checkpoint else "trained from scratch"
    chat_format = f"that checkpoint's ({checkpoint})" if checkpoint else "Llama 2's"
    longest = base.json("config.json")["max_context"]
    dates = f"{base.manifest['created_at'][:10]} (base model) to {chat.manifest['created_at'][:10]} (chat model)"
    return Section(
        "Model details",
        [
            Fact("Model developer", maker.developer),
            Fact("Version", f"chat model of round {chat.partition}, profile {run.profile}, data version `{chat.data_version}`", (chat,)),
            Fact(
                "Variations",
                f"Selected on validation prompts by the annotator from {len(selection['candidates'])} candidates: {selection['selected']} "
                f"(`{selection['asset']}`).",
                (chat,),
            ),
            Fact("Input", f"Text in {chat_format} chat format, at most {longest} tokens with the answer.", (base,)),
            Fact("Output", "Text."),
            Fact(
                "Model architecture",
                f"Auto-regressive Llama 2 decoder, {base.metrics['parameters']:,} parameters, {origin}; supervised fine-tuning, then "
                "reinforcement learning from human feedback by rejection sampling and, where applied, PPO.",
                (base,),
            ),
            Fact("Model dates", dates, (base, chat)),
            Fact("Status", maker.status),
            Fact("Licence", maker.licence),
            Fact("Where to send comments", maker.contact),
        ],
    )


def _hardware(run: Run) -> Section:
    """Hours, energy and carbon of every training and of the evaluation of this round."""
    trained = [one for name in TRAINED if (one := run.parent(name)).applied]
    rows, total = [], {"device_hours": 0.0, "kwh": 0.0, "tco2e": 0.0}
    for one in trained:
        for used in one.manifest["carbon"]:
            spent = carbon(used["device"], used["device_hours"], used["watts"])
            rows.append({"trained": one.asset, **spent, "artifact": f"{one.asset}/{one.key}"})
            for name in total:
                total[name] += spent[name]
    rows.append({"trained": "all", "device": "", "watts": None, **total, "artifact": ""})
    hardware = trained[0].manifest["hardware"]
    devices = ", ".join(hardware["gpus"]) or f"{hardware['cores']} cores of {hardware['processor']}"
    packages = trained[0].manifest["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("python", "torch", "lightning") if name in packages)
    assumed = any(used["assumed"] for one in trained for used in one.manifest["carbon"])
    return Section(
        "Hardware and software",
        [
            Fact("Training factors", f"{devices}; {versions}.", (trained[0],)),
            Fact(
                "Carbon footprint",
                f"{total['device_hours']:.3g} device hours, {total['kwh']:.3g} kWh, {total['tco2e']:.3g} tCO2e, by LLaMA's formula "
                "(device hours × watts × PUE 1.1 × 0.385 kg CO2e a kWh; arXiv:2302.13971, section 6)."
                + (" The watts of some devices are assumed." if assumed else ""),
                tuple(trained),
            ),
        ],
        pl.DataFrame(rows, infer_schema_length=None).select("trained", "device", "device_hours", "watts", "kwh", "tco2e", "artifact"),
    )


def _data(run: Run) -> Section:
    tokens, dataset, filtered, sft = (run.parent(name) for name in ("pretraining/tokens", "preferences/dataset", "corpus/filtered", "sft/data"))
    base = run.parent("pretraining/base_model")
    sources = filtered.frame("rows/corpus_filters.parquet")["source"].unique().sort().to_list()
    batches = dataset.frame("comparisons.parquet")["batch"].unique().sort().to_list()
    return Section(
        "Training data",
        [
            Fact(
                "Pretraining",
                f"{tokens.metrics['train_tokens']:,} tokens ({tokens.metrics['train_bytes']:,} bytes) from "
                f"{filtered.metrics['documents']:,} documents of {', '.join(sources)}; "
                f"{base.metrics['tokens_seen']:,} tokens seen. Licences: `docs/data.md`.",
                (tokens, filtered, base),
            ),
            Fact("Fine-tuning", f"{sft.metrics['examples']:,} demonstrations.", (sft,)),
            Fact(
                "Preferences",
                f"{dataset.metrics['comparisons']:,} comparisons, {dataset.metrics['held_out']:,} of them held out.",
                (dataset,),
            ),
            Fact(
                "Data freshness",
                f"Preferences up to the batches {', '.join(batches)}, read by {dataset.manifest['created_at'][:10]}; the texts are as "
                "old as their sources (`docs/data.md`).",
                (dataset,),
            ),
        ],
    )


def as_markdown(title: str, sections: Sequence[Section], table: Any) -> str:
    """The card as Markdown; `table` turns a frame into a Markdown table."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.facts:
            parts.append("\n".join(f"- **{fact.name}**: {fact.text}{_cited(fact)}" for fact in section.facts))
        if section.table is not None:
            parts.append(table(section.table))
    return "\n\n".join(parts) + "\n"


def _cited(fact: Fact) -> str:
    """Links from `artifacts/evaluation/report/<key>/` to the manifests that a fact was read from."""
    links = ", ".join(f"[{one.asset}]({manifest_link(f'{one.asset}/{one.key}')})" for one in fact.sources)
    return f" ({links})" if links else ""


def manifest_link(artifact: str) -> str:
    """The manifest of `<asset>/<key>` as seen from the report's own folder."""
    return f"../../../{artifact}/manifest.json"


def labelled(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pl.DataFrame:
    """Some columns of rows as a frame; no rows give an empty frame with these columns."""
    return pl.DataFrame(
        [{name: row[name] for name in columns} for row in rows], schema=None if rows else list(columns), infer_schema_length=None
    )
