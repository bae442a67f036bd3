"""The ratio is exact, mixtures are nested, and nothing but the ratio changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.config import CocoConfig, FinetuneConfig, TaskConfig
from orchestrator.data.coco import CocoSource
from orchestrator.data.mixture import Example, make_evaluation, make_mixture, n_high, tier_facts
from orchestrator.errors import ConfigError

MINI = Path(__file__).parents[2].parent / "shared" / "data" / "coco_mini"


def config(n: int = 40, **task: object) -> FinetuneConfig:
    return FinetuneConfig(n_examples=n, task=TaskConfig(width=64, height=64, **task))


def of_tier(examples: list[Example], tier: str) -> set[str]:
    return {e.question.question_id for e in examples if e.question.tier == tier}


@settings(deadline=None, max_examples=15)
@given(n=st.integers(1, 60), ratio=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_the_ratio_is_exact_and_all_examples_are_there(n: int, ratio: float, seed: int) -> None:
    examples = make_mixture(config(n), ratio, seed)
    assert len(examples) == n
    high, low = of_tier(examples, "high"), of_tier(examples, "low")
    assert len(high) == n_high(ratio, n)
    assert len(high) + len(low) == n
    assert abs(len(high) - ratio * n) <= 0.5


@pytest.mark.parametrize(("ratio", "tier"), [(0.0, "low"), (1.0, "high")])
def test_the_ratio_is_exact_at_both_ends(ratio: float, tier: str) -> None:
    assert {e.question.tier for e in make_mixture(config(), ratio, 1)} == {tier}


@settings(deadline=None, max_examples=15)
@given(ratios=st.tuples(st.floats(0, 1), st.floats(0, 1)), seed=st.integers(0, 1000))
def test_mixtures_are_nested(ratios: tuple[float, float], seed: int) -> None:
    small, large = (make_mixture(config(30), r, seed) for r in sorted(ratios))
    assert of_tier(small, "high") <= of_tier(large, "high")
    assert of_tier(large, "low") <= of_tier(small, "low")
    # A slot whose tier is the same at both ratios holds the same example.
    for a, b in zip(small, large, strict=True):
        assert a == b or (a.question.tier, b.question.tier) == ("low", "high")


def test_the_same_seed_gives_the_same_order_and_another_seed_other_scenes() -> None:
    first, again, other = (make_mixture(config(), 0.5, seed) for seed in (3, 3, 4))
    assert first == again
    assert not of_tier(first, "high") & of_tier(other, "high")


def test_families_share_a_mixture_evenly() -> None:
    examples = make_mixture(config(90), 0.5, 0)
    for tier in ("high", "low"):
        families = [e.question.family for e in examples if e.question.tier == tier]
        counts = [families.count(f) for f in set(families)]
        assert len(counts) == 8
        assert max(counts) - min(counts) <= 1


def test_slots_that_change_their_tier_keep_their_family() -> None:
    mixtures = [make_mixture(config(60), r, 3) for r in (0.0, 0.5, 1.0)]
    for slots in zip(*mixtures, strict=True):
        assert len({e.question.family for e in slots}) == 1


@settings(deadline=None, max_examples=15)
@given(ratio=st.sampled_from([0.0, 0.25, 0.5, 1.0]), novelty=st.floats(0, 1), seed=st.integers(0, 1000))
def test_novel_families_have_their_share_in_both_tiers(ratio: float, novelty: float, seed: int) -> None:
    setting = config(160, families=("colour", "count"), novel_families=("relation", "comparison"))
    setting = setting.model_copy(update={"novelty_ratio": novelty})
    examples = make_mixture(setting, ratio, seed)
    for tier in ("low", "high"):
        families = [e.question.family for e in examples if e.question.tier == tier]
        novel = [f for f in families if f in ("relation", "comparison")]
        assert abs(len(novel) - novelty * len(families)) <= 3
        for part in (novel, [f for f in families if f not in novel]):
            counts = [part.count(f) for f in set(part)]
            assert max(counts, default=0) - min(counts, default=0) <= 1
    assert {e.question.family for e in make_evaluation(setting, n_per_family=1)} == {
        *("colour", "count", "relation", "comparison")
    }


def test_novelty_and_complexity_change_independently() -> None:
    """The 2 x 2: at its corners a slot's tier follows the ratio alone, its class of families the novelty alone."""
    setting = config(24, families=("colour", "shape"), novel_families=("relation",))
    corners = {
        (r, v): make_mixture(setting.model_copy(update={"novelty_ratio": v}), r, 0)
        for r in (0.0, 1.0)
        for v in (0.0, 1.0)
    }
    for (ratio, novelty), examples in corners.items():
        assert {e.question.tier for e in examples} == {"high" if ratio else "low"}
        assert {e.question.family for e in examples} == ({"relation"} if novelty else {"colour", "shape"})


def test_text_and_caption_shares_stay_fixed_beside_the_ratio() -> None:
    setting = config(40, text_only_share=0.25, caption_share=0.1)
    mixtures = [make_mixture(setting, r, 0) for r in (0.0, 0.5, 1.0)]
    for examples, high in zip(mixtures, (0, 13, 26), strict=True):
        families = [e.question.family for e in examples]
        assert families.count("text_only") == 10
        assert families.count("caption") == 4
        assert len(of_tier(examples, "high")) == high
    beside = [[(i, e) for i, e in enumerate(m) if e.question.tier is None] for m in mixtures]
    assert beside[0] == beside[1] == beside[2]


def test_examples_draw_their_own_image_and_text_only_ones_have_none() -> None:
    for example in make_mixture(config(12, text_only_share=0.5), 0.5, 0):
        image = example.image()
        if example.question.family == "text_only":
            assert image is None
            assert " . " in example.question.text
            assert example.question.answer in example.question.text
        else:
            assert image is not None
            assert image.shape == (64, 64, 3)
            assert image.dtype == np.uint8


def test_held_out_questions_are_never_training_questions() -> None:
    setting = config(60)
    held_out = make_evaluation(setting, n_per_family=6)
    assert len(held_out) == 16 * 6
    assert not {e.scene for e in held_out} & {e.scene for e in make_mixture(setting, 0.5, 0)}
    assert {(e.question.family, e.question.tier) for e in held_out} == {
        (f, tier) for f in setting.task.families for tier in ("low", "high")
    }


@pytest.mark.parametrize(
    ("task", "ratio", "words"),
    [
        ({}, 1.5, "expected 0 to 1"),
        ({"families": ()}, 0.5, "task.families"),
        ({"families": ("relatoin",)}, 0.5, "Did you mean 'relation'"),
        ({"n_objects_low": (1, 2), "families": ("comparison",)}, 0.5, "need at least 3 objects"),
        ({"text_only_share": 0.6, "caption_share": 0.6}, 0.5, "more than one"),
        ({"source": "coco"}, 0.5, "needs data.source: coco"),
    ],
)
def test_impossible_mixtures_are_named(task: dict, ratio: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_mixture(config(**task), ratio, 0)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"n_objects_high": (4, 12)}, "one tier"),
        ({"n_objects_low": (3, 2)}, "smaller value comes first"),
        ({"n_objects_low": (0, 2)}, "1 or more"),
        ({"novel_families": ("colour",)}, "also in families"),
        ({"size": (0.3, 0.1)}, "size"),
    ],
)
def test_impossible_tasks_are_refused_when_written(task: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TaskConfig(**task)


def test_a_share_of_novel_families_needs_some() -> None:
    setting = config().model_copy(update={"novelty_ratio": 0.5})
    with pytest.raises(ConfigError, match="novel_families"):
        make_mixture(setting, 0.5, 0)


@pytest.mark.skipif(not MINI.is_dir(), reason="no COCO subset in ../shared/data/coco_mini")
def test_held_out_photographs_are_never_trained_on() -> None:
    setting = config(200, source="coco", families=("existence", "point"))
    source = CocoSource(CocoConfig(root=str(MINI), split="train2017"))
    trained = {e.question.image_id for e in make_mixture(setting, 0.5, 0, source)}
    asked = {e.question.image_id for e in make_evaluation(setting, source)}
    assert min(len(trained), len(asked)) > 20
    assert not trained & asked
    other = setting.model_copy(update={"task": setting.task.model_copy(update={"eval_split": "val2017"})})
    assert len({e.question.image_id for e in make_mixture(other, 0.5, 0, source)}) > len(trained)


@pytest.mark.skipif(not MINI.is_dir(), reason="no COCO subset in ../shared/data/coco_mini")
def test_a_mixture_on_photographs_is_nested_too() -> None:
    setting = config(20, source="coco", families=("existence", "point"))
    source = CocoSource(CocoConfig(root=str(MINI), split="train2017"))
    small, large = (make_mixture(setting, r, 0, source) for r in (0.25, 0.75))
    assert len(of_tier(small, "high")) == 5
    assert of_tier(small, "high") <= of_tier(large, "high")
    image = small[0].image()
    assert image is not None
    assert image.ndim == 3


def test_what_differs_between_the_tiers_is_measured() -> None:
    facts = tier_facts(make_evaluation(config(), n_per_family=60))
    assert facts["questions/low/n_objects"] < 4 < 8 < facts["questions/high/n_objects"] < 10
    assert facts["questions/high/coverage"] > 2 * facts["questions/low/coverage"]
    assert facts["questions/high/size_mean"] == pytest.approx(facts["questions/low/size_mean"], rel=0.05)
    assert facts["questions/high/words"] == pytest.approx(facts["questions/low/words"], rel=0.05)
