"""Small blocks go to processor cores, large ones to GPUs, by the time that they take."""

from __future__ import annotations

import pytest

from orchestrator.probes.cost import GPU_START, place

SMALL, LARGE = [(27, 400, 128)] * 9, [(27, 5000, 3584)] * 29


def test_measured_blocks_take_what_was_measured() -> None:
    one = place(SMALL[:1], 1, 1, mlp=False)
    assert one.core_seconds == pytest.approx(2.8, rel=0.1)
    assert one.gpu_seconds - GPU_START == pytest.approx(1.0, rel=0.15)


def test_a_few_small_blocks_stay_on_cores_and_many_large_ones_do_not() -> None:
    assert not place(SMALL, 16, 1, mlp=False).on_gpu
    assert place(LARGE, 4, 1, mlp=False).on_gpu
    assert place(LARGE, 16, 1, mlp=True).on_gpu
    assert not place(LARGE, 64, 1, mlp=False).on_gpu


def test_without_a_gpu_or_where_it_is_set_nothing_is_chosen() -> None:
    assert not place(LARGE, 2, 0, mlp=False).on_gpu
    assert place(SMALL, 16, 1, mlp=False, requested=0.5).on_gpu
    assert not place(LARGE, 16, 4, mlp=False, requested=0.0).on_gpu


def test_more_cores_and_more_gpus_shorten_it_to_the_longest_block() -> None:
    few, many, most = (place(LARGE, cores, cores, mlp=False) for cores in (2, 8, 10**6))
    assert few.core_seconds > many.core_seconds > most.core_seconds > 0
    assert few.gpu_seconds > many.gpu_seconds
    assert most.core_seconds == pytest.approx(place(LARGE[:1], 1, 0, mlp=False).core_seconds)
