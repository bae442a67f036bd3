"""What is done to visual tokens does what it says, on every class."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from orchestrator.models.random_models import FAMILIES
from orchestrator.models.reduction import n_kept

STATES = ("random", "norm", "question_attention", "similarity", "leverage", "divprune", "tome")


def test_deleting_no_token_gives_the_plain_answers(make_bench, family) -> None:
    bench = make_bench(family)
    for method in STATES:
        assert bench.keeping([0.0] * 3, method).predicted == bench.plain.predicted


def test_deleting_all_tokens_equals_blocking_every_layer(make_bench, family) -> None:
    bench = make_bench(family)
    gone = bench.deleted("norm", 1.0)
    assert gone.kept.tolist() == [0, 0, 0]
    assert gone.predicted == bench.blocked(range(bench.adapter.n_layers)).predicted


def test_an_image_patched_with_itself_gives_the_plain_answers(make_bench, family) -> None:
    bench = make_bench(family)
    for layer in getattr(bench.adapter, "cross_layers", (0, 1)):
        assert bench.patched(bench, layer).predicted == bench.plain.predicted


def test_kept_tokens_are_counted_for_each_image(make_bench, family) -> None:
    bench = make_bench(family)
    counts = [int(bench.adapter.n_vision(example)[0]) for example in bench.inputs]
    assert bench.deleted("random", 0.5).kept.tolist() == [n_kept(n, 0.5) for n in counts]
    assert bench.plain.kept.tolist() == counts


@pytest.mark.parametrize("name", ["llava_next", "mllama"])
@pytest.mark.parametrize("method", STATES)
def test_answers_depend_neither_on_the_batch_nor_on_what_else_is_asked(make_bench, name, method) -> None:
    together, alone = make_bench(name, 3), make_bench(name, 1)
    found = together.deleted(method, 0.5, seed=3)
    assert alone.deleted(method, 0.5, seed=3).predicted == found.predicted
    assert alone.keeping([0.9, 0.5, 0.9], method, seed=3, numbers=[1]).predicted == found.predicted[1:2]
    assert together.deleted(method, 0.5, seed=3).predicted == found.predicted


def test_deletion_after_the_last_layer_that_reads_the_image_is_of_no_consequence(make_bench) -> None:
    bench = make_bench("mllama")
    (last,) = bench.adapter.cross_layers
    assert bench.deleted("random", 1.0, layer=last + 1).predicted == bench.plain.predicted
    assert bench.deleted("random", 1.0, layer=last).predicted == bench.deleted("random", 1.0).predicted


def test_patching_another_image_makes_the_answer_that_images(make_bench) -> None:
    """At the first layer the states are all there is of an image, and both prompts are equal."""
    bench = make_bench("llava", size=(1, 1), order=(0, 0))
    other = make_bench("llava", size=(1, 1), order=(0, 0))
    swapped = dict(bench.inputs[0], pixel_values=-3.0 * bench.inputs[0]["pixel_values"])
    other.inputs = [swapped, swapped]
    assert bench.patched(other, 0).predicted == other.plain.predicted


def test_a_shrunk_image_is_prepared_again_and_the_rest_left_alone(make_bench) -> None:
    bench = make_bench("llava")
    images = {1: np.full((30, 30, 3), 7, np.uint8)}
    seen = []
    bench.adapter = SimpleNamespace()
    bench.examples = [SimpleNamespace(image=lambda i=i: images.get(i)) for i in range(3)]
    bench.adapter.prepare = lambda image, text: seen.append((None if image is None else image.shape, text))
    assert bench._shrunk(0, 0.75) is bench.inputs[0]  # no image, nothing to shrink
    bench._shrunk(1, 0.75)
    bench._shrunk(1, 1.0)
    assert seen == [((4, 4, 3), "1"), (None, "1")]  # the model sees 8 x 8 px: a quarter of them is 4 x 4


def test_every_class_with_a_random_model_is_covered() -> None:
    assert len(FAMILIES) >= 12
