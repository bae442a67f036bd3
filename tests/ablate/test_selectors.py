"""Each way to choose tokens against its definition: hand-computed cases, and small implementations of the papers' rules
that share no code with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ablate.selectors.check import check_methods, check_model_gives
from orchestrator.ablate.selectors.document import BEGIN, END, to_markdown
from orchestrator.ablate.selectors.entries import ENTRIES
from orchestrator.ablate.selectors.kinds import Request, Sizes
from orchestrator.ablate.selectors.price import prices
from orchestrator.ablate.selectors.registry import get_selector, selector_names, settings_of
from orchestrator.config import AblateConfig, RunConfig
from orchestrator.config.sweep import make_sweep
from orchestrator.errors import ConfigError
from orchestrator.models.reduction import Kept, Seen
from orchestrator.study.preflight import preflight
from tests.ablate import plain_methods

V, D, T, E = 24, 10, 5, 6


def seen(seed: int = 0, v: int = V, d: int = D) -> Seen:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    return Seen(
        states=normal(v, d) * torch.linspace(0.2, 2, v)[:, None],
        order=torch.arange(v),
        text=normal(T, d),
        attention=normal(T + 1, v).softmax(1),
        keys=normal(v, E),
        text_keys=normal(T, E),
        encoder=normal(v).softmax(0),
        encoder_keys=normal(v, E),
    )


def choose(name: str, image: Seen, n: int, **settings: float) -> Any:
    selector = get_selector(name)
    return selector.function()(Request(image, n, {**selector.settings, **settings}, (3, 1)))


def kept(name: str, image: Seen, n: int, **settings: float) -> list[int]:
    found = choose(name, image, n, **settings)
    return (found.index if isinstance(found, Kept) else found[:n]).tolist()


def cosines(x: torch.Tensor) -> np.ndarray:
    x = x.double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


@given(st.sampled_from([entry.name for entry in ENTRIES]), st.integers(1, V - 1), st.integers(0, 5))
def test_as_many_distinct_tokens_are_kept_as_are_wanted(name: str, n: int, seed: int) -> None:
    found = choose(name, seen(seed), n)
    index = found.index if isinstance(found, Kept) else found[:n]
    assert len(index) == n == len(set(index.tolist()))
    assert 0 <= int(index.min()) <= int(index.max()) < V
    assert isinstance(found, Kept) == get_selector(name).merges
    if isinstance(found, Kept):
        assert found.weights is not None
        assert found.weights.shape == (n, V)
        assert (found.weights >= 0).all()


@pytest.mark.parametrize("width", [7, 30])
def test_scores_of_states_follow_their_definitions(width: int) -> None:
    image = seen(1, 12, width)
    x = image.states.double().numpy()
    assert kept("norm", image, 11) == np.argsort(-np.linalg.norm(x, axis=1)).tolist()[:11]
    mean_cosine = (cosines(image.states).sum(1) - 1) / 11
    assert kept("similarity", image, 11) == np.argsort(mean_cosine).tolist()[:11]
    for rank in (2, 5):
        left = np.linalg.svd(x)[0][:, :rank]
        assert kept("leverage", image, 11, rank=rank) == np.argsort(-(left**2).sum(1)).tolist()[:11]


def test_leverage_of_tokens_of_low_rank_sums_to_that_rank() -> None:
    from orchestrator.ablate.selectors.states import leverage_scores

    states = torch.randn(10, 2) @ torch.randn(2, 6)
    assert float(leverage_scores(states, 5).sum()) == pytest.approx(2, abs=1e-4)


def test_a_random_order_depends_on_the_seed_alone() -> None:
    random = get_selector("random").function()
    first, again, other = (random(Request(seen(s), 5, {}, seed)) for s, seed in ((0, (1, 2)), (4, (1, 2)), (0, (2, 2))))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("n", [1, 2, 7, V - 1])
def test_divprune_is_greedy_max_min_of_cosine_distance(n: int) -> None:
    image = seen(2)
    assert kept("divprune", image, n) == plain_methods.divprune(image.states.double().numpy(), n)


def test_divprune_of_three_directions_keeps_one_of_each() -> None:
    base = torch.eye(3)[[0, 0, 0, 1, 1, 2]] + 0.01 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert {[0, 0, 0, 1, 1, 2][i] for i in kept("divprune", Seen(base, torch.arange(6)), 3)} == {0, 1, 2}


def test_fastv_ranks_by_the_last_token_and_not_by_the_question() -> None:
    attention = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])
    image = Seen(torch.ones(4, 2), torch.arange(4), attention=attention)
    assert kept("fastv", image, 2) == kept("pyramiddrop", image, 2) == [3, 2]
    assert kept("question_attention", image, 1) == [0]
    given_before = Seen(torch.ones(4, 2), torch.arange(4), given=torch.tensor([0.0, 3.0, 1.0, 2.0]))
    assert kept("question_attention", given_before, 2) == [1, 3]


def test_debiased_attention_sees_through_an_exponential_trend() -> None:
    place = torch.arange(V, dtype=torch.float32)
    content = torch.ones(V)
    content[[2, 9]] = 1.6
    image = Seen(torch.ones(V, 2), torch.arange(V), attention=(0.001 * content * torch.exp(0.3 * place))[None])
    assert kept("fastv", image, 2) == [V - 1, V - 2]
    assert sorted(kept("debiased_attention", image, 2)) == [2, 9]
    gaps = Seen(torch.ones(3, 2), torch.tensor([0, 1, 9]), attention=torch.exp(torch.tensor([[0.0, 0.4, 2.7]])))
    assert kept("debiased_attention", gaps, 1) == [1], "the trend follows places in the image, not among those left"


def test_sparsevlm_lets_the_words_that_are_like_the_image_decide() -> None:
    image = seen(3)
    logits = (image.states @ image.text.T).double().numpy()
    shares = np.exp(logits - logits.max(1, keepdims=True))
    likeness = (shares / shares.sum(1, keepdims=True)).mean(0)
    raters = likeness > likeness.mean()
    assert 0 < raters.sum() < T
    scores = image.attention[:-1].double().numpy()[raters].mean(0)
    assert kept("sparsevlm", image, 9) == np.argsort(-scores).tolist()[:9]


@pytest.mark.parametrize("n", [1, 4, 9, 20])
def test_dart_adds_to_its_pivots_what_is_least_like_them(n: int) -> None:
    image, pivots = seen(4), []
    norms = image.keys.abs().sum(1).numpy()
    chosen = sorted(np.argsort(-norms)[: min(4, n)].tolist())
    pivots += [image.states[i] for i in chosen]
    pivots += [image.text[i] for i in sorted(np.argsort(-image.text_keys.abs().sum(1).numpy())[:4].tolist())]
    share = int(np.ceil((n - len(chosen)) / len(pivots)))
    for pivot in pivots:
        free = [i for i in range(V) if i not in chosen]
        free.sort(key=lambda i: float(torch.dot(pivot, image.states[i]) / pivot.norm() / image.states[i].norm()))
        chosen += free[: min(share, n - len(chosen))]
    assert kept("dart", image, n) == chosen


def test_dart_without_text_beside_the_image_has_pivots_of_the_image_alone() -> None:
    image = Seen(torch.eye(6), torch.arange(6), keys=torch.arange(6.0)[:, None])
    assert kept("dart", image, 2, image_pivots=1)[0] == 5


@pytest.mark.parametrize("n", [1, 5, 11, 12, 17, 23])
def test_tome_is_bipartite_soft_matching_with_means_by_size(n: int) -> None:
    image = seen(5)
    found, wanted = choose("tome", image, n), plain_methods.tome(image.states.double().numpy(), n)
    assert set(found.index.tolist()) == set(wanted)
    merged = (found.weights @ image.states).double().numpy()
    for k, anchor in enumerate(found.index.tolist()):
        members, mean = wanted[anchor]
        assert set(found.weights[k].nonzero()[:, 0].tolist()) == members
        np.testing.assert_allclose(merged[k], mean, atol=1e-5)
    np.testing.assert_allclose(found.weights.sum(1).numpy(), 1, atol=1e-6)
    assert (found.weights > 0).sum() == V, "each token is in one mean"


def test_two_equal_tokens_are_the_first_that_tome_merges() -> None:
    states = torch.eye(6)
    states[4] = states[1]
    found = choose("tome", Seen(states, torch.arange(6)), 5)
    row = found.index.tolist().index(1)
    assert found.weights[row].tolist() == [0, 0.5, 0, 0, 0.5, 0]


def test_fastervlm_keeps_what_the_class_token_attends_to() -> None:
    image = seen(6)
    assert kept("fastervlm", image, 7) == np.argsort(-image.encoder.numpy()).tolist()[:7]


@pytest.mark.parametrize("n", [1, 6, 13])
def test_visionzip_adds_the_mean_of_the_rest_to_evenly_spaced_tokens(n: int) -> None:
    image = seen(7)
    found = choose("visionzip", image, n, contextual_share=0.34)
    n_targets = min(n - 1, round(0.34 * n))
    order = np.argsort(-image.encoder.numpy()).tolist()
    dominant, rest = sorted(order[: n - n_targets]), sorted(order[n - n_targets :])
    expected = {i: image.states[i] for i in dominant}
    if n_targets:
        step = max(1, len(rest) // n_targets)
        targets = [rest[k * step] for k in range(n_targets)]
        others, likes = [i for i in rest if i not in targets], cosines(image.encoder_keys)
        groups = {t: [i for i in others if max(targets, key=lambda u: likes[i, u]) == t] for t in targets}
        for t, members in groups.items():
            expected[t] = image.states[t] + (image.states[members].mean(0) if members else 0)
    assert found.index.tolist() == list(expected)
    torch.testing.assert_close(found.weights @ image.states, torch.stack(list(expected.values())))


@pytest.mark.parametrize("n", [1, 2, 9])
def test_prumerge_adds_neighbours_by_their_attention_and_one_token_for_the_rest(n: int) -> None:
    image, share = seen(8), 0.2
    found = choose("prumerge", image, n, neighbours_share=share)
    order, likes = np.argsort(-image.encoder.numpy()).tolist(), cosines(image.encoder_keys)
    centres = order[: max(1, n - 1)]
    rows = []
    for c in centres:
        near = sorted((i for i in range(V) if i != c), key=lambda i: -likes[c, i])[: round(share * V)]
        rows.append(image.states[c] + sum(image.encoder[i] * image.states[i] for i in near))
    if n > 1:
        rows.append(sum(image.encoder[i] * image.states[i] for i in order[n - 1 :]))
    assert found.index.tolist() == (centres + order[n - 1 : n] if n > 1 else centres)
    torch.testing.assert_close(found.weights @ image.states, torch.stack(rows))


def test_class_tokens_among_the_visual_ones_are_kept_first_and_weigh_nothing() -> None:
    image = seen(9)
    attention = image.encoder.clone()
    attention[0] = float("inf")
    marked = Seen(image.states, image.order, encoder=attention, encoder_keys=image.encoder_keys)
    for name in ("fastervlm", "visionzip", "prumerge"):
        assert kept(name, marked, 5)[0] == 0
    assert choose("prumerge", marked, 5).weights.isfinite().all()


def test_every_entry_names_its_source_and_counts_its_operations() -> None:
    assert {"random", "norm", "fastv", "divprune", "dart", "pyramiddrop", "sparsevlm", "visionzip"} < set(
        selector_names()
    )
    for entry in ENTRIES:
        assert entry.source
        assert entry.cost
        few, many = (entry.operations(Sizes(v, 64, v // 4, 8)) for v in (64, 256))
        assert few < many or entry.name == "random"


def test_unknown_names_settings_and_places_are_refused_with_the_nearest_right_one() -> None:
    with pytest.raises(ConfigError, match=r"ablate.methods: unknown name 'fastvlm'.*'fastervlm'"):
        check_methods(AblateConfig(methods=("fastvlm",)))
    with pytest.raises(ConfigError, match=r"ablate.inside_methods: unknown name 'downsample'"):
        check_methods(AblateConfig(inside_methods=("downsample",)))
    with pytest.raises(ConfigError, match=r"fastv reads the decoder's attention.*inside_methods"):
        check_methods(AblateConfig(methods=("fastv",)))
    with pytest.raises(ConfigError, match=r"leverage: unknown setting 'ranks'.*'rank'"):
        check_methods(AblateConfig(selector_settings={"leverage": {"ranks": 3}}))
    with pytest.raises(ConfigError, match=r"norm: unknown setting 'x'. It has none"):
        check_methods(AblateConfig(selector_settings={"norm": {"x": 3}}))
    check_methods(AblateConfig(methods=("fastv", "random"), checks=("knockout",)))
    assert settings_of(get_selector("leverage"), {"leverage": {"rank": 3}}) == {"rank": 3}


def test_a_model_that_does_not_give_what_a_method_needs_is_refused_before_work() -> None:
    inside = AblateConfig(checks=("inside",), inside_methods=("fastv", "sparsevlm"))
    check_model_gives(inside, "llava")
    with pytest.raises(ConfigError, match="sparsevlm needs what a model of type 'mllama' does not give: text and"):
        check_model_gives(inside, "mllama")
    with pytest.raises(ConfigError, match=r"fastv .*'molmo'.*fused blocks"):
        check_model_gives(inside, "molmo")
    with pytest.raises(ConfigError, match=r"visionzip .*'qwen2_5_vl'.*encoder"):
        check_model_gives(AblateConfig(checks=("deletion",), methods=("visionzip",)), "qwen2_5_vl")


def test_settings_of_methods_pass_preflight(tmp_path: Path) -> None:
    """Settings are held in a mapping, which cannot be hashed."""
    ablate = {"checks": ["deletion"], "selector_settings": {"leverage": {"rank": 3}}}
    study = {"name": "s", "storage": str(tmp_path), "stages": ["ablate"], "base": {"ablate": ablate}}
    preflight(make_sweep(study), ["ablate"])
    study["base"] = {"ablate": {**ablate, "methods": ["fastv"]}}
    with pytest.raises(ConfigError, match="fastv reads the decoder's attention"):
        preflight(make_sweep(study), ["ablate"])


def test_the_documentation_lists_the_entries() -> None:
    text = (Path(__file__).parents[2] / "docs" / "causal.md").read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0] == to_markdown()


def test_a_plan_prices_every_method_beside_what_it_saves() -> None:
    ablate = {"checks": ["deletion", "inside"], "methods": ["norm", "question_attention", "downsample"],
              "inside_methods": ["fastv", "pyramiddrop"]}  # fmt: skip
    for model in ("reference-joint", "reference-cross"):
        run = RunConfig.model_validate({"model": {"name": model}, "ablate": ablate})
        found = {price.method: price for price in prices(run)}
        assert set(found) == {"norm", "question_attention", "fastv", "pyramiddrop"}
        assert found["norm"].choosing_gflop < 0.2 * found["norm"].saved_gflop
        assert found["question_attention"].choosing_gflop > found["question_attention"].saved_gflop
        assert 0 < found["fastv"].choosing_gflop < found["pyramiddrop"].choosing_gflop
        assert found["fastv"].saved_gflop < found["norm"].saved_gflop
