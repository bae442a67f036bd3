"""Subspace alignment, CKA and drift against numpy in float64."""

from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.capture.recorder import Recorder
from orchestrator.capture.taps import State
from orchestrator.compression import finish
from orchestrator.compression.alignment import linear_cka, relative_drift, top5_alignment
from orchestrator.compression.gram import Variant
from orchestrator.compression.metrics import Launched, measure
from orchestrator.compression.registry import default_names
from orchestrator.config import CaptureConfig
from orchestrator.errors import DataError


def states(b: int, n: int, d: int, seed: int = 0, mean: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(b, n, d)) + mean).float()


def everything(hidden: torch.Tensor) -> torch.Tensor:
    return torch.ones(hidden.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize(("n", "m", "d"), [(8, 20, 30), (40, 9, 12), (6, 6, 6), (64, 20, 128)])
def test_top5_alignment_equals_svd(n: int, m: int, d: int) -> None:
    a, b = states(2, n, d, 0, 0.7), states(2, m, d, 1, 0.5)
    got = top5_alignment(a, everything(a), b, everything(b))
    for i in range(2):
        v, w = (np.linalg.svd(x[i].double().numpy(), full_matrices=False)[2][:5] for x in (a, b))
        assert float(got[i]) == pytest.approx(np.sum((v @ w.T) ** 2) / 5, abs=2e-4)


def svd_alignment(a: np.ndarray, b: np.ndarray, centred: bool = False) -> float:
    tokens = [x.astype(np.float32).astype(np.float64) for x in (a, b)]
    v, w = (np.linalg.svd(x - centred * x.mean(0), full_matrices=False)[2][:5] for x in tokens)
    return float(np.sum((v @ w.T) ** 2) / 5)


@pytest.mark.parametrize(("n", "d"), [(60, 200), (200, 60)])
@pytest.mark.parametrize(("mean", "massive"), [(0.0, 1.0), (30.0, 1.0), (300.0, 1.0), (0.0, 1000.0)])
def test_faint_directions_beside_a_large_mean_or_token_are_told_apart(
    n: int, d: int, mean: float, massive: float
) -> None:
    rng = np.random.default_rng(0)
    sides = []
    for noise in (0.0, 0.1):
        tokens = np.random.default_rng(1).normal(size=(n, d)) / np.arange(1, d + 1)
        tokens += noise * rng.normal(size=(n, d)) / np.arange(1, d + 1)
        tokens[:, 7] += mean
        tokens[7] *= massive
        sides.append(tokens)
    a, b = (torch.from_numpy(side[None]).float() for side in sides)
    for centred in (False, True):
        got = float(top5_alignment(a, everything(a), b, everything(b), centred=centred))
        assert got == pytest.approx(svd_alignment(*sides, centred), abs=2e-3)


@pytest.mark.parametrize("n", [6, 30])
def test_directions_beside_a_massive_token_have_unit_length(n: int) -> None:
    """Taken from the Gram matrix, a faint direction's length is off by rounding: hundreds of times too long."""
    tokens = states(20, n, 96, 5, 2.0)
    tokens[:, 2] *= 1000
    side = measure(tokens, torch.full((20,), n), ("top5_alignment_text_centred",), full=True).leading[Variant(True)]
    ritz = finish.solve(side.ritz.numpy(), side.metric.numpy(), np.full(20, n - 1))
    directions = side.basis.double().numpy() @ ritz.directions
    assert np.linalg.norm(directions, axis=1)[:, : ritz.present.min()] == pytest.approx(1, abs=1e-3)


def test_centred_alignment_does_not_count_the_mean_that_both_share() -> None:
    a, b = states(1, 40, 300, 0, 5.0), states(1, 40, 300, 1, 5.0)
    raw, centred = (float(top5_alignment(a, everything(a), b, everything(b), centred=c)) for c in (False, True))
    assert raw > 0.2
    assert centred < 0.1


def test_a_state_aligns_fully_with_itself_scaled_and_with_few_tokens() -> None:
    for n in (1, 3, 12):
        a = states(2, n, 9)
        assert top5_alignment(a, everything(a), 3 * a, everything(a)) == pytest.approx([1, 1], abs=1e-5)


def test_orthogonal_directions_give_zero_and_no_tokens_give_nan() -> None:
    a, b = torch.zeros(1, 2, 8), torch.zeros(1, 2, 8)
    a[0, 0, 0], a[0, 1, 1], b[0, 0, 2], b[0, 1, 3] = 1, 2, 1, 2
    assert float(top5_alignment(a, everything(a), b, everything(b))) == pytest.approx(0, abs=1e-7)
    assert top5_alignment(a, everything(a), b, torch.zeros(1, 2, dtype=torch.bool)).isnan().all()


def test_widths_must_agree() -> None:
    with pytest.raises(DataError, match="8 and 9"):
        top5_alignment(states(1, 2, 8), torch.ones(1, 2, dtype=torch.bool), states(1, 2, 9), torch.ones(1, 2).bool())


def test_overlap_of_random_subspaces_is_its_chance_level() -> None:
    q = np.linalg.qr(np.random.default_rng(3).normal(size=(400, 40, 5)))[0]
    one = finish.solve(np.tile(np.eye(5), (200, 1, 1)), np.tile(np.eye(5), (200, 1, 1)))
    found = finish.overlap(one, one, q[:200].swapaxes(1, 2) @ q[200:])
    assert finish.chance(one, one, 40) == pytest.approx(np.full(200, 5 / 40))
    assert found.mean() == pytest.approx(5 / 40, abs=0.01)


def unbiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, equation 5, written out."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    third = 2 / (n - 2) * (one @ k @ m @ one)
    return (np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - third) / (n * (n - 3))


def test_debiased_cka_equals_the_estimator_written_out() -> None:
    a = states(1, 12, 5, 0, 2.0)
    b = torch.cat([a[..., :2], states(1, 12, 7, 1)], 2)
    x, y = (t[0].double().numpy() for t in (a, b))
    kernels = x @ x.T, y @ y.T
    want = unbiased_hsic(*kernels) / np.sqrt(
        unbiased_hsic(kernels[0], kernels[0]) * unbiased_hsic(kernels[1], kernels[1])
    )
    assert float(linear_cka(a, b)) == pytest.approx(want, abs=1e-5)


def test_cka_is_one_for_rotated_scaled_shifted_states_and_near_zero_for_unrelated_ones() -> None:
    a = states(2, 50, 10)
    rotation = torch.linalg.qr(states(1, 10, 10, 5)[0])[0]
    for debiased in (True, False):
        assert linear_cka(a, 2 * a @ rotation + 1, debiased=debiased).numpy() == pytest.approx([1, 1], abs=1e-4)
    unrelated = linear_cka(states(40, 20, 60, 1), states(40, 20, 60, 2))
    assert abs(float(unrelated.mean())) < 0.05
    assert float(linear_cka(states(40, 20, 60, 1), states(40, 20, 60, 2), debiased=False).mean()) > 0.5


def test_cka_ignores_masked_samples_and_is_nan_for_constant_or_too_few() -> None:
    a, b = states(1, 10, 4), states(1, 10, 6, 1)
    mask = torch.arange(10)[None] < 7
    assert float(linear_cka(a, b, mask)) == pytest.approx(float(linear_cka(a[:, :7], b[:, :7])), abs=1e-6)
    assert linear_cka(torch.ones(1, 10, 4), b).isnan().all()
    assert linear_cka(a[:, :3], b[:, :3]).isnan().all()


def test_drift_is_relative_and_masked() -> None:
    a = torch.tensor([[[3.0, 4.0], [100.0, 100.0]]])
    mask = torch.tensor([[True, False]])
    assert float(relative_drift(a, a * 1.5, mask)) == pytest.approx(0.5)
    assert float(relative_drift(a, a, mask)) == 0


@pytest.mark.parametrize("n_layers", [1, 2, 3, 9])
@pytest.mark.parametrize("centred", [False, True])
def test_a_captured_pass_has_the_alignment_columns(n_layers: int, centred: bool) -> None:
    """The same values whether layers are measured together or, with a smaller buffer, one by one."""
    hidden = [states(2, 12, 16, layer, 0.3) for layer in range(3)]
    vision, text = torch.arange(12).expand(2, 12) < 7, torch.arange(12).expand(2, 12) >= 7
    ending = "_centred" * centred
    names = ("gini", f"top5_alignment_text{ending}", f"top5_alignment_next{ending}", "top5_alignment_chance")
    recorder = Recorder(CaptureConfig(keep_features=False), names, np.linspace(0, 1, 4), {"decoder": n_layers})
    for layer, state in enumerate(hidden):
        recorder(State("decoder", layer, state, vision, text))
    rows = {(row.layer, row.group): row.values for row in recorder.finish().rows}

    def align(*sides: torch.Tensor) -> np.ndarray:
        return top5_alignment(*sides, centred=centred).numpy()

    for layer in range(3):
        want = align(hidden[layer], vision, hidden[layer], text)
        assert rows[layer, "vision"][1] == pytest.approx(want)
        assert rows[layer, "text"][1] == pytest.approx(want)
        assert rows[layer, "text"][3] == pytest.approx([5 / 16] * 2)
    for layer in range(2):
        for group, mask in (("vision", vision), ("text", text)):
            want = align(hidden[layer], mask, hidden[layer + 1], mask)
            assert rows[layer, group][2] == pytest.approx(want)
    assert np.isnan(rows[2, "vision"][2]).all()


def test_taps_measured_together_have_their_own_values_and_variants_of_equal_matrices_are_solved_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = {"measure": 0, "solve": 0}
    solve = finish.solve

    def counted_measure(*args: Any, **kwargs: Any) -> Launched:
        calls["measure"] += 1
        return measure(*args, **kwargs)

    def counted_solve(*args: Any) -> finish.Ritz:
        calls["solve"] += 1
        return solve(*args)

    monkeypatch.setattr("orchestrator.capture.recorder.measure", counted_measure)
    monkeypatch.setattr(finish, "solve", counted_solve)
    vision, text = torch.arange(16).expand(2, 16) < 7, torch.arange(16).expand(2, 16) >= 7
    every = torch.ones(2, 7, dtype=torch.bool)
    taken = [State("projector", 0, states(2, 7, 16, 9), every, None)]
    taken += [State("decoder", layer, states(2, 16, 16, layer, 0.3), vision, text) for layer in range(3)]

    def record(*taps: str) -> dict[tuple[str, int, str], np.ndarray]:
        config, n_layers = CaptureConfig(keep_features=False), {"decoder": 3, "projector": 1}
        recorder = Recorder(config, default_names(), np.linspace(0, 1, 4), n_layers)
        for state in taken:
            if state.tap in taps:
                recorder(state)
        return {(row.tap, row.layer, row.group): row.values for row in recorder.finish().rows}

    together = record("projector", "decoder")
    # vision of both taps, and text; raw and centred of each group of a tap, as no token is massive
    assert calls == {"measure": 2, "solve": 6}
    alone = record("projector") | record("decoder")
    assert together.keys() == alone.keys()
    for key, values in alone.items():
        assert together[key] == pytest.approx(values, rel=1e-5, abs=1e-6, nan_ok=True)


def test_centred_tokens_have_one_direction_less_than_there_are_tokens() -> None:
    """Of four tokens three directions are left; the fourth is rounding noise, however large it comes out."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(40):
        a = torch.randn(1, 4, 32, generator=generator) + 3 * torch.randn(1, 1, 32, generator=generator)
        mask = torch.ones(1, 4, dtype=torch.bool)
        padded = torch.cat([a, torch.zeros(1, 5, 32)], 1)
        wide = torch.nn.functional.pad(mask, (0, 5))
        other = torch.randn(1, 9, 32, generator=generator)
        every = torch.ones(1, 9, dtype=torch.bool)
        found = [float(top5_alignment(x, m, other, every, centred=True)) for x, m in ((a, mask), (padded, wide))]
        x, y = ((v - v.mean(1, keepdim=True))[0].double() for v in (a, other))
        left, right = (torch.linalg.svd(v)[2][:k] for v, k in ((x, 3), (y, 5)))
        expected = float((left @ right.T).square().sum() / 3)
        assert found == pytest.approx([expected, expected], rel=1e-3), seed
