"""The best answer of a closed set is found exactly, whatever its tokens, and the prompts are left as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.errors import ModelError
from orchestrator.models.choosing import Branch, branch_probabilities, choice_ids, choose, make_tree
from orchestrator.models.decoding import continue_greedily, prompted
from orchestrator.models.random_models import random_adapter, random_example
from tests.models import model_zoo

SETS = (
    [(5,), (9,), (11,)],
    [(7,), (8,), (7, 8), (7, 9), (8, 8, 3), (10, 4, 4), (10, 4, 6)],  # "1", "2", "12", ... and words of pieces
    [(12, 13, 14), (12, 13, 15), (12, 16)],
)


def exhaustive(logits_after, choices: list[tuple[int, ...]]) -> np.ndarray:
    """Scores by definition: the product, over every branch of the prefix tree, of renormalised probabilities."""
    scores = np.ones(len(choices))
    for number, ids in enumerate(choices):
        for depth in range(len(ids) + 1):
            prefix = ids[:depth]
            alike = [c for c in choices if c[:depth] == prefix]
            following = sorted({c[depth] for c in alike if len(c) > depth})
            stops = any(len(c) == depth for c in alike)
            if len(following) + stops < 2:
                continue
            p = logits_after(prefix).double().softmax(-1)
            total = 1.0 if stops else float(p[following].sum())
            own = float(p[ids[depth]]) if depth < len(ids) else 1.0 - float(p[following].sum())
            scores[number] *= own / total
    return scores


@pytest.mark.parametrize("family", model_zoo.CLASSES)
@torch.no_grad()
def test_the_best_answer_is_that_of_scoring_every_one(family: str) -> None:
    adapter = model_zoo.fresh(family)
    batch = adapter.collate(model_zoo.examples(family))
    # Random models are nearly uniform: sharpen them, so that branches differ.
    with prompted(adapter, batch) as prompts:
        found = choose(prompts, [make_tree(choices) for choices in SETS])
        before = continue_greedily(prompts, 4)
    assert torch.equal(before, adapter.generate_ids(batch, 4)), "choosing changed the prompts"
    for row, choices in enumerate(SETS):

        def after(prefix: tuple[int, ...], row: int = row) -> torch.Tensor:
            with prompted(adapter, batch) as again:
                logits = again.logits
                for token in prefix:
                    logits = again.step(torch.full((len(SETS),), token, device=logits.device))
            return logits[row]

        scores = exhaustive(after, choices)
        assert scores.sum() == pytest.approx(1.0)
        number, score = found[row]
        assert score == pytest.approx(scores[number], rel=1e-3)
        assert scores[number] >= scores.max() - 1e-6


@torch.no_grad()
def test_single_tokens_need_no_further_pass_and_rows_without_choices_none(monkeypatch) -> None:
    adapter = random_adapter("llava")
    batch = adapter.collate([random_example(adapter, (1, 1), 5, seed) for seed in (0, 1)])
    with prompted(adapter, batch) as prompts:
        monkeypatch.setattr(prompts, "step", lambda _: pytest.fail("a step was made"))
        found = choose(prompts, [make_tree([(3,), (4,)]), None])
        p = prompts.logits[0].double().softmax(-1)
    assert found[1] is None
    assert found[0] == (int(p[4] > p[3]), pytest.approx(float(max(p[3], p[4]) / (p[3] + p[4])), rel=1e-4))


def test_a_longer_answer_has_no_disadvantage() -> None:
    """Two answers differ in their first token alone; the pieces that follow have no say."""
    tree = make_tree([(1,), (2, 5, 6, 7)])
    logits = torch.full((10,), -8.0)
    logits[2], logits[1] = 1.0, 0.0
    assert branch_probabilities(tree, logits)[2] == pytest.approx(np.e / (1 + np.e))
    assert tree.children == {1: 0, 2: 1}


def test_stopping_takes_what_going_on_leaves() -> None:
    tree = make_tree([(1,), (1, 2)])
    assert tree == Branch((1,), 0, {2: 1})
    logits = torch.log(torch.tensor([0.5, 0.1, 0.3, 0.1]))  # a full stop, say, is as good an end as any
    assert branch_probabilities(tree, logits) == pytest.approx({2: 0.3, None: 0.7})


@pytest.mark.parametrize("choices", [[(1,), (1,)], [(), (1,)]])
def test_answers_that_the_tokens_do_not_tell_apart_are_named(choices: list[tuple[int, ...]]) -> None:
    with pytest.raises(ModelError, match="same tokens"):
        make_tree(choices)


def test_answers_are_told_apart_by_the_reference_tokeniser() -> None:
    from orchestrator.data.templates import vocabulary
    from orchestrator.reference.build import make_processor

    processor = make_processor(vocabulary())
    ids = choice_ids(processor, "llava", [str(n) for n in range(21)] + ["red", "left"])
    assert [len(i) for i in ids] == [1] * 10 + [2] * 11 + [1, 1]
    assert isinstance(make_tree(ids), Branch)
