"""Which tokens are kept, and how their states survive as float16."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from orchestrator.capture import positions
from orchestrator.capture.vision_quantiles import vision_quantiles
from orchestrator.config import CaptureConfig, RunConfig
from orchestrator.models.planning import vision_positions


@given(n=st.integers(1, 64), seed=st.integers(0, 2**31), counts=st.lists(st.integers(1, 5000), min_size=1, max_size=4))
def test_vision_places_are_tokens_of_the_image_in_reading_order(n, seed, counts):
    found = positions.vision_ordinals(vision_quantiles(n, seed), torch.tensor(counts))
    assert found.shape == (len(counts), n)
    assert (found >= 0).all()
    assert (found < torch.tensor(counts)[:, None]).all()
    assert (found.diff(dim=1) >= 0).all()


@given(n=st.integers(1, 64), seed=st.integers(0, 2**31), extra=st.integers(0, 1000))
def test_vision_places_are_distinct_where_there_are_twice_as_many_tokens(n, seed, extra):
    found = positions.vision_ordinals(vision_quantiles(n, seed), torch.tensor([2 * n + extra]))
    assert len(set(found[0].tolist())) == n or n == 1


def test_vision_places_depend_on_the_seed_alone():
    assert (vision_quantiles(16, 3) == vision_quantiles(16, 3)).all()
    assert (vision_quantiles(16, 3) != vision_quantiles(16, 4)).any()


def test_text_places_run_from_the_first_to_the_last_token():
    assert positions.text_ordinals(4, torch.tensor([4, 10])).tolist() == [[0, 1, 2, 3], [0, 3, 6, 9]]
    assert positions.text_ordinals(1, torch.tensor([5])).tolist() == [[0]]


def test_names_follow_the_order_in_which_states_are_gathered():
    assert positions.position_names(2, 1) == ["vision_mean", "vision_00", "vision_01", "text_mean", "text_00", "last"]
    assert positions.position_names(None, 0) == ["text_mean", "last"]
    assert positions.position_names(0, 0, before=True) == ["vision_mean", "text_mean", "last", "before"]


def test_a_mean_ignores_what_is_absent():
    hidden = torch.randn(2, 5, 3)
    mask = torch.tensor([[False, True, True, False, True], [True, True, False, False, False]])
    spoiled = hidden.masked_fill(~mask[..., None], torch.nan)
    expected = torch.stack([row[keep].mean(0) for row, keep in zip(hidden, mask, strict=True)])
    torch.testing.assert_close(positions.masked_mean(spoiled, mask), expected)
    torch.testing.assert_close(positions.masked_mean(hidden, None), hidden.mean(1))


def test_states_are_taken_at_their_places():
    hidden = torch.randn(2, 5, 3)
    taken = positions.take(hidden, torch.tensor([[0, 2], [1, 0]]))
    assert torch.equal(taken, torch.stack([hidden[0, [0, 2]], hidden[1, [1, 0]]]))


def test_a_mean_shows_a_state_that_is_not_finite():
    hidden = torch.zeros(1, 3, 2)
    hidden[0, 1, 0] = torch.inf
    assert not positions.masked_mean(hidden, torch.ones(1, 3, dtype=torch.bool)).isfinite().all()


def test_features_that_fit_float16_are_only_cast():
    features = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    half, scales = positions.to_float16(features)
    assert scales is None
    assert (half == features.astype(np.float16)).all()


@given(
    hnp.arrays(np.float32, (2, 1, 2, 4), elements=st.floats(-1e9, 1e9, width=32)),
)
def test_large_features_come_back_from_float16_within_its_precision(features):
    half, scales = positions.to_float16(features)
    assert np.isfinite(half).all()
    back = half.astype(np.float64) * (1.0 if scales is None else scales[..., None].astype(np.float64))
    largest = np.abs(features).max(axis=-1, keepdims=True)
    assert (np.abs(back - features) <= 2.0**-11 * np.abs(features) + 2.0**-24 * np.maximum(largest / 32752, 1)).all()


@pytest.mark.parametrize("value", [65504.0, 65505.0, 1e30])
def test_the_largest_values_do_not_overflow(value):
    half, _ = positions.to_float16(np.full((1, 1, 1, 2), value, dtype=np.float32))
    assert np.isfinite(half).all()


@given(n=st.integers(1, 700), seed=st.integers(0, 50))
def test_as_many_places_as_tokens_are_every_token_once(n: int, seed: int) -> None:
    found = positions.vision_ordinals(vision_quantiles(n, seed), torch.tensor([n]))
    assert found[0].tolist() == list(range(n))


def test_all_positions_are_the_models_own_number() -> None:
    run = RunConfig(capture=CaptureConfig(n_vision_positions="all"))
    assert vision_positions(run) == 64
    assert vision_positions(RunConfig(capture=CaptureConfig(n_vision_positions=7))) == 7
