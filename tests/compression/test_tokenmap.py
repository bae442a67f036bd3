"""Token maps put each norm where its token lies in the image."""

import numpy as np
import pytest

from orchestrator.compression.tokenmap import lay_on_grid
from orchestrator.errors import DataError


def test_tokens_land_on_their_place_whatever_their_order() -> None:
    grid = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]])
    laid = lay_on_grid(np.array([[10.0, 1.0, 0.0, 11.0], [20.0, 2.0, 5.0, 21.0]]), grid)
    assert laid[0].tolist() == [[[0, 1], [10, 11]], [[5, 2], [20, 21]]]


def test_each_tile_has_its_own_grid_and_padding_none() -> None:
    grid = np.array([[0, 0, 0], [0, 0, 2], [0, 2, 2], [-1, -1, -1]])
    laid = lay_on_grid(np.array([[1.0, 2.0, 3.0, 9.0]]), grid)
    assert sorted(laid) == [0, 2]
    assert laid[0].shape == (1, 1, 1)
    assert laid[2][0, 0, [0, 2]].tolist() == [2, 3]
    assert np.isnan(laid[2][0, 0, 1])


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="3 norms for a grid of 2"):
        lay_on_grid(np.ones((1, 3)), np.zeros((2, 3), int))
    with pytest.raises(DataError, match="2 tokens on 1 grid cells"):
        lay_on_grid(np.ones((1, 2)), np.zeros((2, 3), int))
