"""Scores against their definitions in float64; numbers and masks of kept tokens; shrunk images; pairs; cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.ablate.cells import list_cells
from orchestrator.ablate.pairs import CHANGES, make_pairs
from orchestrator.ablate.selection import seen_size, shrink
from orchestrator.config import AblateConfig, TaskConfig
from orchestrator.data.mixture import ExampleMaker
from orchestrator.errors import ConfigError
from orchestrator.models.reduction import n_kept


@given(st.integers(1, 5000), st.floats(0, 1))
def test_the_number_kept_is_within_half_a_token_and_zero_only_when_all_are_deleted(n: int, share: float) -> None:
    kept = n_kept(n, share)
    assert (kept == 0) == (share == 1.0)
    assert kept == 1 or abs(kept - (1 - share) * n) <= 0.5 + 1e-9
    assert kept <= n


def test_an_image_is_shrunk_to_the_share_of_what_the_model_sees() -> None:
    image = np.zeros((336, 336, 3), np.uint8)
    assert shrink(image, 0.75).shape == (168, 168, 3)
    assert shrink(image, 0.75, (112, 112)).shape == (56, 56, 3)
    assert shrink(image, 0.9999, (112, 112)).shape == (1, 1, 3)
    assert seen_size({"pixel_values": torch.zeros(1, 3, 112, 112)}) == (112, 112)
    assert seen_size({"pixel_values": torch.zeros(1, 5, 3, 112, 112)}) is None  # tiles: fewer of them after shrinking
    assert seen_size({"pixel_values": torch.zeros(64, 588)}) is None  # native resolution


@pytest.mark.parametrize("attribute", CHANGES)
def test_a_pair_differs_in_its_attribute_alone_and_in_its_answer(attribute: str) -> None:
    own, donors = make_pairs(attribute, 12, 5, ExampleMaker(TaskConfig()))
    for a, b in zip(own, donors, strict=True):
        assert a.question.text == b.question.text
        assert a.question.answer != b.question.answer
        before, after = list(a.scene.objects), list(b.scene.objects)
        if attribute == "count":
            assert len(after) == len(before) - 1 == int(b.question.answer)
            assert set(after) < set(before)
            continue
        changed = [(x, y) for x, y in zip(before, after, strict=True) if x != y]
        assert len(changed) == (2 if attribute == "relation" else 1)
        for x, y in changed:
            if attribute == "relation":
                assert (x.colour, x.shape) == (y.colour, y.shape)
            else:
                assert getattr(y, attribute) == b.question.answer
                assert x._replace(**{attribute: getattr(y, attribute)}) == y


def test_pairs_are_scenes_of_the_low_tier() -> None:
    task = TaskConfig(n_objects_low=(2, 3), n_objects_high=(7, 8))
    for attribute in CHANGES:
        scenes = [pair.scene for pair in make_pairs(attribute, 3, 0, ExampleMaker(task))[0]]
        assert {len(scene.objects) for scene in scenes if scene} <= {2, 3}


def test_lone_objects_of_which_none_can_be_taken_away_are_refused() -> None:
    """Else they would be searched for another for ever."""
    with pytest.raises(ConfigError, match="at least 2 objects"):
        make_pairs("relation", 3, 0, ExampleMaker(TaskConfig(n_objects_low=(1, 1))))
    with pytest.raises(ValidationError, match="2 or more"):
        AblateConfig(n_objects_low=(1, 1))


def test_an_unknown_attribute_is_named() -> None:
    with pytest.raises(ConfigError, match="'colour'"):
        make_pairs("color", 1, 0, ExampleMaker(TaskConfig()))


CHECKS = ("deletion", "inside", "knockout", "patching", "policy", "link")


def test_cells_are_distinct_and_hold_the_plain_model() -> None:
    config = AblateConfig(checks=CHECKS, deleted_shares=(0.5,), methods=("random", "question_attention", "downsample"))
    cells = list_cells(config, 6)
    assert len(set(cells)) == len(cells)
    assert {c.seed for c in cells if c.method == "random"} == {0, 1, 2}
    assert [c.deleted_share for c in cells if c.method == "downsample"] == [0.0, 0.5]
    assert {c.layer for c in cells if c.check == "deletion" and c.method == "random"} == {0, 2, 4}
    windows = [(c.layer, c.last_layer) for c in cells if c.check == "knockout"]
    assert windows == [(0, -1), (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 5)]


def test_cross_attention_is_switched_off_layer_by_layer_and_not_deleted_where_nothing_reads() -> None:
    cells = list_cells(AblateConfig(checks=CHECKS, inside_layers=(1, 4, 6)), 7, (1, 3, 5))
    windows = [(c.layer, c.last_layer) for c in cells if c.check == "knockout"]
    assert windows == [(0, -1), (1, 1), (3, 3), (5, 5), (0, 6)]
    inside = {(c.method, c.layer) for c in cells if c.check == "deletion" and c.layer}
    assert inside == {("random", 1), ("random", 4), ("fastv", 4)}
    between = list_cells(AblateConfig(checks=("inside",), inside_layers=(2, 3, 4)), 7, (1, 3, 5))
    assert {c.layer for c in between} == {2, 4}  # 2 and 3 are before the same cross-attention layers
    assert {c.layer for c in cells if c.check == "patching"} == {1, 3, 5}
