"""The model card in Markdown, with the fields of Llama 2's card (appendix A.7)."""

from resources.recipe import Run
from resources.store import Artifact


def model_card(run: Run, scoreboard: str) -> str:
    """The card of a round's chat model, from the manifests of its ancestors. `scoreboard` is a Markdown table."""
    base, sft, chat = (run.parent(name) for name in ("pretraining/base_model", "sft/data", "rlhf/chat_model"))
    tokens, dataset, filtered = (run.parent(name) for name in ("pretraining/tokens", "preferences/dataset", "corpus/filtered"))
    selection = chat.json("selection.json")
    trained = [
        run.parent(name)
        for name in ("pretraining/base_model", "sft/model", "reward/helpfulness", "reward/safety", "rlhf/policy", "rlhf/ppo_policy")
    ]
    missed = "Measures below whose `met` is false miss their goal; `docs/measurements.md` gives the reasons and what was tried."
    checkpoint = base.manifest["config"]["checkpoint"]
    origin = f"begun with the imported checkpoint `{checkpoint}`" if checkpoint else "trained from scratch"
    parts = [
        f"# Model card: chat model of round {chat.partition}, profile {run.profile}",
        f"Data version `{chat.data_version}`. Selected on validation prompts by the annotator from {len(selection['candidates'])} candidates: "
        f"**{selection['selected']}** (`{selection['asset']}`).",
        "## Model details",
        f"- Architecture: Llama 2 decoder, {base.metrics['parameters']:,} parameters, {origin}.",
        f"- Input and output: text in {'that checkpoint' if checkpoint else 'Llama 2'}'s chat format. "
        f"Longest sequence {base.json('config.json')['max_context']} tokens.",
        "- Licence of the code: Apache-2.0. Licences of the data are in `docs/data.md`.",
        "## Intended use",
        "- To show and to study the alignment recipe at a size that fits a laptop. It does not converse and knows no facts: do not deploy it.",
        "## Training data",
        f"- Pretraining: {tokens.metrics['train_tokens']:,} tokens ({tokens.metrics['train_bytes']:,} bytes) from "
        f"{filtered.metrics['documents']:,} documents; {base.metrics['tokens_seen']:,} tokens seen.",
        f"- Fine-tuning: {sft.metrics['examples']:,} demonstrations. Preferences: {dataset.metrics['comparisons']:,} comparisons, "
        f"{dataset.metrics['held_out']:,} of them held out.",
        "## Hardware and carbon",
        _energy(trained),
        "## Evaluation",
        f"The judge `annotator` is the simulated annotator's score without noise. {missed}",
        scoreboard,
        "## Limits and responsible use",
        "- Safety is measured by rules on template-made prompts in English. `unseen actions` shows how far refusals carry over to words that "
        "were not trained on.",
        "- Before any use with people: test on your own prompts, guard the user's input and the model's output with the safety reward model, "
        "and let people rate.",
        "## Where each number comes from",
        f"Column `artifact` names the folder under `artifacts/`. `tampu lineage evaluation/report --round {chat.partition}` goes down to files "
        "and commits.",
    ]
    return "\n\n".join(parts) + "\n"


def _energy(trained: list[Artifact]) -> str:
    """What was trained and how; hours, energy and carbon differ from run to run and are asked for, not written down."""
    made = ", ".join(f"`{one.asset}`" for one in trained if one.applied)
    return (
        f"- Trained: {made}. Hours, energy and carbon are measured for every artifact and kept in the table `carbon`: "
        '`tampu query "SELECT asset, device, device_hours, kwh, tco2e FROM carbon_current"`.'
    )
