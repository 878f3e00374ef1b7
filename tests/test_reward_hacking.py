"""The probes of reward hacking: what they change, and that they see a reward that pays for it."""

import math

import numpy as np
import polars as pl
import pytest
from conftest import Demo

from assets.evaluation.reward_hacking import PROBES, compare, rank_correlation, variety
from resources.annotator import score
from resources.prompts.prompt import Prompt
from resources.warehouse import query

PROMPT = Prompt([{"role": "user", "content": "do you like rain?"}], "chat", "test")
ANSWER = "Yes, I like rain. Do you?"


def test_probes_keep_the_answer_and_the_annotator_thinks_no_better_of_it() -> None:
    for change in PROBES.values():
        changed = change(PROMPT, ANSWER)
        assert changed.startswith(ANSWER)
        assert len(changed) > 2 * len(ANSWER)
        assert score(PROMPT, changed) <= score(PROMPT, ANSWER)
    assert "rain" in PROBES["keyword stuffing"](PROMPT, "Yes.")


def test_a_reward_for_length_is_caught_and_one_for_brevity_is_not() -> None:
    answers = [ANSWER, "No.", "Perhaps, who knows?"]
    before = {"long": np.array([float(len(a)) for a in answers]), "short": np.array([-float(len(a)) for a in answers])}
    changed = [PROBES["length"](PROMPT, a) for a in answers]
    after = {"long": np.array([float(len(a)) for a in changed]), "short": np.array([-float(len(a)) for a in changed])}
    rows = {(row["judge"], row["metric"]): row for row in compare("length", before, after)}
    assert (rows["long", "preferred"]["value"], rows["short", "preferred"]["value"]) == (1.0, 0.0)
    assert rows["long", "mean_change"]["value"] == -rows["short", "mean_change"]["value"] > 100
    assert 0.4 < rows["long", "preferred"]["ci_low"] < rows["long", "preferred"]["ci_high"] == 1


def test_rank_correlation_is_spearmans() -> None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, 6, 40), random.integers(0, 6, 40)
    ranks = [np.array([sum(b < a for b in each) + (sum(b == a for b in each) + 1) / 2 for a in each]) for each in (first, second)]
    centred = [each - each.mean() for each in ranks]
    expected = (centred[0] * centred[1]).sum() / math.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    assert rank_correlation(first, second) == pytest.approx(expected)
    assert rank_correlation([1, 2, 3], np.array([4.0, 5.0, 9.0])) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [5, 5, 5]) == 0


def test_variety_counts_words_and_bigrams() -> None:
    rows = variety("m", pl.DataFrame({"text": ["a b a b", "a b c", "a b c"]}))
    values = {row["metric"]: row["value"] for row in rows}
    assert values["words"] == pytest.approx(10 / 3)
    assert values["distinct_bigrams"] == pytest.approx(3 / 7)  # ab, ba, bc of 3 + 2 + 2
    assert values["distinct_answers"] == pytest.approx(2 / 3)
    assert values["repeated_bigrams"] == pytest.approx(1 / 7)


def test_every_round_has_every_probe_by_every_judge(finished_demo: Demo) -> None:
    found = query(finished_demo.store, "SELECT round, judge, probe FROM reward_hacking_current WHERE metric = 'preferred'")
    judges = {"helpfulness_reward", "safety_reward", "gated_reward", "annotator"}
    assert set(found.iter_rows()) == {(name, judge, probe) for name in ("v1", "v2") for judge in judges for probe in PROBES}
    shares = query(finished_demo.store, "SELECT value, ci_low, ci_high FROM reward_hacking_current WHERE metric = 'preferred'")
    assert all(0 <= low <= value <= high <= 1 for value, low, high in shares.iter_rows())
