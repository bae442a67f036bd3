"""Metrics against float64 oracles, hand-computed cases, edge cases and the invariances they claim."""

import math
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from orchestrator.compression import registry
from orchestrator.compression.declaration import Metric
from orchestrator.compression.entries import BASES, MASSIVE_RATIO
from orchestrator.compression.gram import Variant
from orchestrator.compression.metrics import CHUNK, compute
from orchestrator.compression.metrics import measure as launch
from orchestrator.compression.registry import ALIGNMENTS, UserMetric
from orchestrator.compression.shared import Shared
from orchestrator.errors import ConfigError
from tests.compression import oracle

METRICS = {
    name: metric for name, metric in registry.METRICS.items() if name not in ALIGNMENTS and metric.needs != "estimate"
}
METRIC_NAMES = tuple(METRICS)
"""Metrics of one set of tokens that have one exact value."""

INTEGER_VALUED = {"rank_90", "tokens_90"}


def everything(hidden: torch.Tensor) -> torch.Tensor:
    return torch.ones(hidden.shape[:2], dtype=torch.bool)


def measure(tokens: np.ndarray, names: tuple[str, ...] = METRIC_NAMES) -> dict[str, float]:
    hidden = torch.as_tensor(np.asarray(tokens), dtype=torch.float32)[None]
    return {name: float(value) for name, value in compute(hidden, everything(hidden), names).items()}


def check(tokens: np.ndarray, relative: float = 1e-3, effective: float = 1e-2) -> None:
    """The stated error: effective rank within 1 %, the rest within 0.1 %."""
    exact = np.asarray(tokens, np.float32).astype(np.float64)
    for name, value in measure(tokens).items():
        tolerance = effective if METRICS[name].base == "effective_rank" else relative
        want = oracle.metric(name, exact)
        assert value == pytest.approx(want, rel=tolerance, abs=2e-4, nan_ok=True), name


def normal(n: int, d: int, seed: int = 0, mean: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * rng.uniform(0.2, 2.0, size=(n, 1)) + mean * rng.normal(size=d)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(("n", "d"), [(1, 6), (2, 6), (6, 1), (5, 9), (9, 5), (8, 8), (40, 24), (24, 40)])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_every_metric_equals_its_definition(n: int, d: int, mean: float) -> None:
    check(normal(n, d, seed=n + d, mean=mean))


def test_hand_computed_values() -> None:
    """Two orthogonal tokens of norms 3 and 1: energies 9 and 1, singular values 3 and 1."""
    got = measure(np.array([[3.0, 0.0], [0.0, 1.0]]))
    assert got["gini"] == pytest.approx(0.25)
    assert got["participation_ratio"] == pytest.approx(100 / 82)
    assert got["participation_ratio_share"] == pytest.approx(50 / 82)
    assert got["norm_entropy"] == pytest.approx(math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1)) / 2)
    assert got["hoyer"] == pytest.approx((math.sqrt(2) - 4 / math.sqrt(10)) / (math.sqrt(2) - 1))
    assert got["tokens_90"] == 0.5
    assert got["stable_rank"] == pytest.approx(10 / 9)
    assert got["effective_rank"] == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert got["spectral_participation"] == pytest.approx(100 / 82)
    assert got["rank_90"] == 1
    assert got["mean_cosine"] == pytest.approx(0, abs=1e-7)
    # centred: the tokens become +-(1.5, -0.5), opposite to each other and on one line
    assert got["effective_rank_centred"] == pytest.approx(1)
    assert got["stable_rank_centred"] == pytest.approx(1)
    assert got["mean_cosine_centred"] == pytest.approx(-1)


def test_equal_tokens_are_fully_spread_in_norm_and_fully_collapsed_in_rank() -> None:
    got = measure(np.tile([1.0, -2.0, 0.5], (10, 1)))
    assert (got["gini"], got["hoyer"]) == pytest.approx((0, 0), abs=1e-6)
    assert got["participation_ratio"] == pytest.approx(10)
    assert got["tokens_90"] == pytest.approx(0.9)
    for name in ("stable_rank", "effective_rank", "spectral_participation", "rank_90", "mean_cosine"):
        assert got[name] == pytest.approx(1, abs=1e-4)
        assert math.isnan(got[f"{name}_centred"])


def test_orthogonal_tokens_of_one_norm_have_full_rank() -> None:
    got = measure(2 * np.eye(7))
    for name in ("stable_rank", "effective_rank", "spectral_participation", "participation_ratio", "rank_90"):
        assert got[name] == pytest.approx(7)
    assert got["effective_rank_centred"] == pytest.approx(6)
    assert got["mean_cosine"] == pytest.approx(0, abs=1e-7)


def test_directions_say_what_compression_does() -> None:
    """Concentrating energy in few tokens, or tokens in few directions, moves every metric by its declared sign."""
    spread = normal(60, 40, 3) + 0.2
    norms = spread / np.linalg.norm(spread, axis=1, keepdims=True)
    concentrated = norms * np.where(np.arange(60) < 5, 5.0, 0.5)[:, None]
    collapsed = norms * (0.15 ** np.arange(40))[None] + 0.02 * norms
    before, by_norm, by_rank = (measure(t) for t in (norms, concentrated, collapsed))
    for name, metric in METRICS.items():
        if name == "massive_share" or name == "mean_cosine_centred" or name == "mean_cosine_centred_trimmed":
            continue
        after = by_norm if metric.family == "norm" else by_rank
        assert metric.direction * (after[name] - before[name]) > 0, name


# ---------------------------------------------------------------- edges


def test_single_token() -> None:
    got = measure(np.array([[1.0, 2.0, 2.0]]))
    assert got["gini"] == 0
    for name in ("participation_ratio", "norm_entropy", "tokens_90", "stable_rank", "effective_rank", "rank_90"):
        assert got[name] == pytest.approx(1)
    assert math.isnan(got["hoyer"])
    assert math.isnan(got["mean_cosine"])
    assert math.isnan(got["stable_rank_centred"])


def test_no_token_no_energy_or_a_state_that_is_not_finite_give_nan_and_leave_other_rows_alone() -> None:
    hidden = torch.from_numpy(normal(4 * 6, 5).reshape(4, 6, 5)).float()
    mask = everything(hidden)
    alone = compute(hidden[3:], mask[3:], METRIC_NAMES)
    mask[0] = False
    hidden[1] = 0
    hidden[2, 3, 1] = float("inf")
    got = compute(hidden, mask, METRIC_NAMES)
    for name, values in got.items():
        undefined = values[:3] if name != "massive_share" else values[[0, 2]]
        assert undefined.isnan().all(), name
        assert float(values[3]) == pytest.approx(float(alone[name][0]), rel=1e-5, abs=1e-6), name
    assert got["massive_share"][1] == 0
    nothing = compute(hidden, torch.zeros(4, 6, dtype=torch.bool), METRIC_NAMES)
    assert all(v.isnan().all() for v in nothing.values())


def test_zero_tokens_among_others() -> None:
    tokens = normal(12, 7)
    tokens[[2, 5, 6]] = 0
    check(tokens)


def test_duplicate_tokens() -> None:
    check(np.repeat(normal(4, 30), 5, axis=0))
    check(np.repeat(normal(4, 6), 5, axis=0))


@pytest.mark.parametrize("distinct", [5, 20, 60, 140])
@pytest.mark.parametrize("mean", [0.0, 10.0])
def test_many_duplicate_tokens_of_large_sides_are_within_the_stated_error(distinct: int, mean: float) -> None:
    check(np.repeat(normal(distinct, 260, mean=mean), 280 // distinct, axis=0))
    check(np.repeat(normal(distinct, 130, mean=mean), 560 // distinct, axis=0))


@pytest.mark.parametrize("size", [30.0, 1e3, 1e4])
@pytest.mark.parametrize(("n", "d"), [(40, 60), (60, 40)])
def test_one_huge_token(size: float, n: int, d: int) -> None:
    tokens = normal(n, d)
    tokens[7] *= size
    check(tokens)
    got = measure(tokens)
    assert got["massive_share"] == pytest.approx(1 / n)
    rest = measure(np.delete(tokens, 7, axis=0))
    for name in METRIC_NAMES:
        if METRICS[name].trimmed:
            assert got[name] == pytest.approx(
                rest[METRICS[name].base + "_centred" * METRICS[name].centred], rel=1e-5
            ), name


@pytest.mark.parametrize(("n", "d"), [(300, 320), (320, 300)])
def test_one_massive_dimension_costs_the_centred_spectrum_no_precision(n: int, d: int) -> None:
    tokens = normal(n, d)
    tokens[:, 3] += 3000
    check(tokens)
    assert measure(tokens, ("stable_rank",))["stable_rank"] < 1.01
    assert measure(tokens, ("stable_rank_centred",))["stable_rank_centred"] > 20


def test_steep_spectra_of_large_sides_are_within_the_stated_error() -> None:
    rng = np.random.default_rng(5)
    for n, d in ((300, 280), (280, 300)):
        left, right = (np.linalg.qr(rng.normal(size=(k, 60)))[0] for k in (n, d))
        for rate in (0.9, 0.5):
            check(left * rate ** np.arange(60) @ right.T * 10)


@pytest.mark.parametrize(("n", "d"), [(12, 20), (20, 12), (70, 300), (300, 70)])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_every_variant_of_the_gram_matrix_has_the_singular_values_of_its_tokens(n: int, d: int, mean: float) -> None:
    tokens = np.stack([normal(n, d, 1, 2.0), normal(n, d, 2)]) + mean * np.eye(d)[3]
    tokens[0, 2] *= 40
    counts = torch.tensor([n, n - 4])
    shared = Shared(torch.from_numpy(tokens).float() * (torch.arange(n) < counts[:, None])[..., None], counts)
    for variant in (Variant(c, t) for c in (False, True) for t in (False, True)):
        found = torch.linalg.eigvalsh(shared.grams.matrix(variant).double()).flip(1)
        leading = shared.leading(variant)
        for row in range(2):
            exact = tokens[row, : counts[row]].astype(np.float32).astype(np.float64)
            if variant.trimmed:
                exact = exact[~oracle.is_massive(exact)]
            if variant.centred:
                exact = exact - exact.mean(0)
            want = np.zeros(found.shape[1])
            sigma = np.linalg.svd(exact, compute_uv=False)[: len(want)]
            want[: len(sigma)] = sigma**2
            scale = float(leading.trace[row]) / want.sum()
            assert found[row].numpy() == pytest.approx(scale * want, abs=3e-6 * scale * want.max())
            assert float(leading.frobenius[row]) == pytest.approx(scale * np.linalg.norm(want), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e5, 1e12])
@pytest.mark.parametrize(("n", "d"), [(20, 30), (270, 300)])
def test_very_large_and_very_small_states_are_in_range(scale: float, n: int, d: int) -> None:
    plain, scaled = measure(normal(n, d, 4, 1.0)), measure(normal(n, d, 4, 1.0) * scale)
    assert scaled == pytest.approx(plain, rel=1e-3, abs=1e-5)


def test_ragged_rows_and_scattered_masks_equal_each_image_alone() -> None:
    rng = np.random.default_rng(2)
    hidden = torch.from_numpy(rng.normal(size=(5, 20, 12))).float()
    mask = torch.from_numpy(rng.random((5, 20)) < np.array([[0.9], [0.2], [0.6], [1.1], [0.5]]))
    got = compute(hidden, mask, METRIC_NAMES)
    for b in range(5):
        alone = measure(hidden[b][mask[b]].numpy())
        for name in METRIC_NAMES:
            assert float(got[name][b]) == pytest.approx(alone[name], rel=2e-5, abs=1e-6, nan_ok=True), name


def test_rows_together_equal_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.from_numpy(normal(6 * 9, 12, 1).reshape(6, 9, 12)).float()
    counts = torch.tensor([9, 3, 9, 1, 7, 9])
    names = registry.default_names("exact")[:-9]
    together = launch(hidden, counts, names)
    monkeypatch.setitem(CHUNK, "cpu", 2 * 9 * 12)
    parts = launch(hidden, counts, names)
    assert parts.n_rows == together.n_rows == 6
    for name, column in together.columns.items():
        assert parts.columns[name].numpy() == pytest.approx(column.numpy(), rel=1e-5, abs=1e-6, nan_ok=True), name
    for variant, found in together.leading.items():
        assert parts.leading[variant].trace.numpy() == pytest.approx(found.trace.numpy(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_cast_up_first(dtype: torch.dtype) -> None:
    hidden = torch.from_numpy(normal(8, 6)[None]).to(dtype)
    got, want = compute(hidden, everything(hidden), METRIC_NAMES), measure(hidden[0].float().numpy())
    assert all(got[name].dtype == torch.float32 for name in METRIC_NAMES)
    assert {n: float(v) for n, v in got.items()} == pytest.approx(want, nan_ok=True)


def test_inputs_are_left_as_they_are() -> None:
    hidden = torch.from_numpy(normal(8, 6)[None]).float().requires_grad_()
    before = hidden.detach().clone()
    compute(hidden, everything(hidden))
    assert torch.equal(hidden, before)


# ---------------------------------------------------------------- invariances


@st.composite
def token_sets(draw: st.DrawFn) -> np.ndarray:
    n, d = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    tokens = normal(n, d, draw(st.integers(0, 10_000)), draw(st.sampled_from([0.0, 1.0, 20.0])))
    if draw(st.booleans()):
        tokens[draw(st.integers(0, n - 1))] *= draw(st.sampled_from([0.0, 40.0]))
    return tokens


def near_step(tokens: np.ndarray) -> bool:
    """Whether a 90 % rule or the massive rule is decided by rounding: then no finite precision is invariant."""
    norms = np.linalg.norm(tokens, axis=1)
    some = np.sort(norms[norms > 0])
    sets = [norms**2, *(np.linalg.svd(t, compute_uv=False) ** 2 for t in (tokens, tokens - tokens.mean(0)))]
    steps = [np.abs(np.cumsum(np.sort(e)[::-1]) / max(e.sum(), 1e-30) - 0.9).min() for e in sets]
    ratio = norms / some[(len(some) - 1) // 2] if len(some) else norms
    return min(steps) < 1e-4 or bool(np.abs(ratio - MASSIVE_RATIO).min() < 1e-2)


def transformed(tokens: np.ndarray, invariance: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if invariance == "rotation":
        return tokens @ np.linalg.qr(rng.normal(size=(tokens.shape[1],) * 2))[0]
    if invariance == "scale":
        return tokens * 10.0 ** rng.uniform(-3, 3)
    if invariance == "permutation":
        return tokens[rng.permutation(len(tokens))]
    return np.repeat(tokens, int(rng.integers(2, 4)), axis=0)


@pytest.mark.parametrize("invariance", ["rotation", "scale", "permutation", "duplication"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(tokens=token_sets(), seed=st.integers(0, 1000))
def test_claimed_invariances_hold(invariance: str, tokens: np.ndarray, seed: int) -> None:
    kept = tokens[~oracle.is_massive(tokens)]
    assume(not near_step(tokens) and not near_step(kept))
    before, after = measure(tokens), measure(transformed(tokens, invariance, seed))
    for name, metric in METRICS.items():
        if invariance in metric.invariances:
            assert after[name] == pytest.approx(before[name], rel=5e-3, abs=1e-3, nan_ok=True), name


@settings(max_examples=25, deadline=None)
@given(tokens=token_sets())
def test_values_stay_in_their_declared_range(tokens: np.ndarray) -> None:
    n, d = tokens.shape
    limits = {"N": n, "d": d, "min": min, "N - 1": n - 1}
    for name, value in measure(tokens).items():
        text = METRICS[name].range
        if text.startswith("{") or math.isnan(value):
            continue
        low, high = eval(text, {"__builtins__": {}}, limits)
        slack = 1e-3 * max(1.0, abs(high))
        kept = low if not METRICS[name].trimmed else min(low, 0) if METRICS[name].family != "similarity" else -1
        assert kept - slack <= value <= (n if METRICS[name].trimmed else high) + slack, name


def test_what_is_not_claimed_does_change() -> None:
    tokens = normal(9, 14, 1)
    before, after = measure(tokens), measure(np.repeat(tokens, 3, axis=0))
    for name in BASES:
        if "duplication" not in METRICS[name].invariances and name not in INTEGER_VALUED:
            assert after[name] != pytest.approx(before[name], rel=1e-3), name


# ---------------------------------------------------------------- registry and metrics of other packages


def test_registry_needs_no_torch() -> None:
    code = "import sys, orchestrator.compression.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_entry_is_complete() -> None:
    for name, metric in registry.METRICS.items():
        assert metric.name == name
        texts = (metric.title, metric.formula, metric.range, metric.source, metric.cost, metric.misleads)
        assert all(texts), name
        assert metric.base.removesuffix("_se") in name


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="stable_rank"):
        measure(np.eye(3), ("stabel_rank",))


def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(1, 3\)"):
        compute(torch.ones(1, 3, 2), torch.ones(1, 4, dtype=torch.bool))


def _largest_norm(hidden: torch.Tensor, mask: torch.Tensor, shared: Shared) -> torch.Tensor:
    assert hidden.shape[:2] == mask.shape
    return shared.sorted_norms[:, 0]


USER = UserMetric(
    Metric("largest_norm", "norm", "Largest norm", "max a", "[0, inf)", 1, "-", "-", "-", "-", "-", frozenset()),
    _largest_norm,
)


def test_a_metric_of_another_package_is_computed_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("largest_norm", f"{__name__}:USER", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "_user_points", lambda: {"largest_norm": point})
    assert registry.metric_names()[-1] == "largest_norm"
    got = measure(np.array([[3.0, 4.0], [1.0, 0.0]]), ("gini", "largest_norm"))
    assert got["largest_norm"] == 5
    assert registry.get_metric("largest_norm").title == "Largest norm"


def test_an_entry_point_that_is_no_metric_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("other", f"{__name__}:USER", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "_user_points", lambda: {"other": point})
    with pytest.raises(ConfigError, match="UserMetric called 'other'"):
        measure(np.eye(2), ("other",))


# ---------------------------------------------------------------- which metrics are computed


def test_the_default_set_needs_no_spectrum_and_asking_for_one_adds_to_it() -> None:
    plain, exact, estimated = (registry.default_names(kind) for kind in ("none", "exact", "estimate"))
    assert {registry.METRICS[name].needs for name in plain} == {"norms", "gram"}
    assert {registry.METRICS[name].needs for name in set(exact) - set(plain)} == {"spectrum"}
    assert {registry.METRICS[name].needs for name in set(estimated) - set(plain)} == {"estimate"}
    assert {"effective_rank_estimate_centred", "effective_rank_estimate_centred_se"} <= set(estimated)


def test_an_estimate_never_takes_the_place_of_the_exact_value() -> None:
    assert registry.chosen_names(["gini", "effective_rank"], "exact") == ("gini", "effective_rank")
    with pytest.raises(ConfigError, match=r"capture\.spectrum: exact; found 'none'"):
        registry.chosen_names(["effective_rank"])
    with pytest.raises(ConfigError, match="its estimate is 'rank_90_estimate_centred'"):
        registry.chosen_names(["rank_90_centred"], "estimate")
    with pytest.raises(ConfigError, match=r"capture\.spectrum: estimate; found 'exact'"):
        registry.chosen_names(["effective_rank_estimate"], "exact")
