"""Batched solvers against scikit-learn and float64 oracles."""

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from benchmarks.counted import Work
from orchestrator.config import ProbeConfig
from orchestrator.probes import engines, logistic, reference
from orchestrator.probes.factor import Factor, factorise
from orchestrator.probes.grid import fit_grid
from orchestrator.probes.labels import make_labels
from orchestrator.probes.logistic import fit_logistic
from orchestrator.probes.mlp import MlpBatch, MlpSettings, fit_mlp
from orchestrator.probes.newton import make_problems, solve
from orchestrator.probes.ridge import fit_ridge
from orchestrator.probes.split import make_split
from orchestrator.probes.targets import make_target
from orchestrator.probes.user import UserProbe

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


def correlated(n: int, d: int, seed: int = 0, decades: float = 2.0) -> np.ndarray:
    """Features (n, d) whose spectrum falls over some decades, with offsets: like hidden states."""
    random = np.random.default_rng(seed)
    rotation = np.linalg.qr(random.normal(size=(d, d)))[0]
    return random.normal(size=(n, d)) * np.logspace(0, -decades, d) @ rotation + random.normal(size=d)


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (train - train.mean(0)) / train.std(0), (test - train.mean(0)) / train.std(0)


@pytest.mark.parametrize(("n", "d"), [(150, 40), (60, 200)], ids=["primal", "dual"])
def test_ridge_chooses_the_penalties_and_coefficients_of_sklearn(n: int, d: int) -> None:
    X = correlated(n + 30, d).astype(np.float32)
    random = np.random.default_rng(1)
    Y = X @ random.normal(size=(d, 6)) + random.normal(size=(n + 30, 6)) * np.linspace(0.01, 3, 6)
    Z, Z_test = standardised(X[:n].astype(np.float64), X[n:].astype(np.float64))
    chosen, prediction, coefficients = reference.ridge(Z, Z_test, Y[:n], PENALTIES)
    factor = factorise(torch.from_numpy(X[None, :n]), torch.from_numpy(X[None, n:]))
    fit = fit_ridge(factor, torch.from_numpy(Y[:n].T).float(), torch.tensor(PENALTIES) * n)
    assert fit.penalty[0].tolist() == chosen.tolist()
    assert np.abs(fit.weights[0].numpy() - coefficients).max() < 1e-4 * np.abs(coefficients).max()
    np.testing.assert_allclose(fit.prediction[0].T.numpy(), prediction, atol=1e-4 * np.abs(prediction).max())


def test_ridge_leave_one_out_error_equals_refitting_without_each_image() -> None:
    X = torch.from_numpy(correlated(20, 8))[None]
    y = np.random.default_rng(0).normal(size=20)
    factor = factorise(X, X)
    fit = fit_ridge(factor, torch.from_numpy(y)[None], torch.tensor([3.0], dtype=torch.float64))
    Z = factor.Z[0].numpy()
    errors = []
    for i in range(20):
        rest = np.arange(20) != i
        errors.append(Ridge(alpha=3.0).fit(Z[rest], y[rest]).predict(Z[[i]])[0] - y[i])
    assert float(fit.loo_error[0, 0, 0]) == pytest.approx(np.square(errors).mean(), rel=1e-9)


def test_leave_one_out_error_of_nearly_interpolating_fits_keeps_its_digits_in_float32() -> None:
    X = torch.from_numpy(correlated(60, 200))[None]
    Y = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 60)))
    exact, found = (
        fit_ridge(factorise(X.to(dtype), X.to(dtype)), Y.to(dtype), torch.tensor([6e-2, 6e-1, 6.0], dtype=dtype))
        for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(found.loo_error.double(), exact.loo_error, rtol=3e-4, atol=0)


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize(("n", "d"), [(120, 10), (40, 70)], ids=["primal", "dual"])
def test_logistic_reaches_the_optimum_of_sklearn(n_classes: int, n: int, d: int) -> None:
    Z, _ = standardised(X := correlated(n, d), X)
    random = np.random.default_rng(0)
    codes = (Z @ random.normal(size=(d, n_classes)) / d**0.5 + 0.5 * random.normal(size=(n, n_classes))).argmax(1)
    factor = factorise(torch.from_numpy(X)[None], torch.from_numpy(X)[None])
    used = torch.ones(1, n, dtype=torch.float64)
    used[:, : n // 5] = 0
    classes = torch.tensor([n_classes])
    problems = make_problems(factor.Q, factor.s, torch.from_numpy(codes)[None], used, classes, n_classes)
    start = torch.zeros(1, n_classes, 1, problems.Q.shape[2], dtype=torch.float64)
    W = solve(problems, torch.tensor([[0.7]], dtype=torch.float64), start, tolerance=1e-8)
    logits = (problems.Q[0] @ W[0, :, 0].T).softmax(1).numpy()
    model = LogisticRegression(C=1 / 0.7, tol=1e-8, max_iter=10_000).fit(Z[n // 5 :], codes[n // 5 :])
    np.testing.assert_allclose(logits, model.predict_proba(Z), atol=2e-5)


def test_logistic_finds_classes_in_directions_of_little_variance_as_sklearn_does() -> None:
    """The inner loss first rises at two penalties, from the strongest down, then falls far below its start."""
    random = np.random.default_rng(2)
    n, codes = 280, random.integers(0, 10, 280)
    strong, weak = (
        random.normal(size=(n, 4)) @ random.normal(size=(4, 64)),
        np.eye(10)[codes] @ random.normal(size=(10, 64)),
    )
    Z, _ = standardised(X := strong + 0.1 * weak + 0.05 * random.normal(size=(n, 64)), X)
    fold = np.arange(n) % 5
    factor = factorise(torch.from_numpy(Z)[None].float(), torch.from_numpy(Z)[None].float())
    whole = torch.ones(1, n)
    labels, classes = torch.from_numpy(codes)[None], torch.tensor([10])
    fit = fit_logistic(factor.Q, factor.s, labels, whole, torch.from_numpy(fold), PENALTIES, classes)
    path = fit.inner_loss[0, :, 0]
    assert path[-3] > path[-2] > path[-1], "the case this test is about"
    assert fit.penalty.item() == reference.logistic(Z, Z, codes, fold, PENALTIES, 10)[0]
    assert path[fit.penalty.item()] < 0.7 * path[-1]


def test_logistic_problems_do_not_influence_each_other() -> None:
    X = torch.from_numpy(np.stack([correlated(90, 12, seed) for seed in range(2)])).float()
    factor = factorise(X, X)
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (3, 90)))
    codes[0] = (factor.Q[1] @ torch.randn(12, 3, generator=torch.Generator().manual_seed(0))).argmax(1)
    fold, classes = torch.arange(90) % 3, torch.full((3,), 3)
    together = fit_logistic(factor.Q, factor.s, codes, torch.ones(3, 90), fold, PENALTIES, classes)
    for b in range(2):
        place = slice(b, b + 1)
        for t in range(3):
            parts = factor.Q[place], factor.s[place], codes[[t]], torch.ones(1, 90), fold
            alone = fit_logistic(*parts, PENALTIES, classes[:1])
            assert alone.penalty[0, 0] == together.penalty[b, t]
            found = [factor.Q[b] @ w[:, :-1].T + w[:, -1] for w in (alone.rotated[0, :, 0], together.rotated[b, :, t])]
            torch.testing.assert_close(found[0].softmax(1), found[1].softmax(1), atol=2e-3, rtol=0)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All penalties and class counts are one batch, of any size."""
    for table in (logistic.TOGETHER, logistic.BATCH_BYTES):
        monkeypatch.setitem(table, "cpu", table["cuda"])  # type: ignore[arg-type]


def several_targets(n_positions: int, n: int, classes: tuple[int, ...]) -> tuple[Factor, Tensor, Tensor]:
    """Factorised features, and targets of some class counts that depend on them."""
    X = torch.from_numpy(np.stack([correlated(n, 12, seed) for seed in range(n_positions)])).float()
    random = torch.Generator().manual_seed(0)
    factor = factorise(X, X)
    codes = [(factor.Z[0] @ torch.randn(12, c, generator=random) + 1.5).argmax(1) for c in classes]
    return factor, torch.stack(codes), torch.tensor(classes)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("limit", [2**30, 4 * 120 * 4 * 4 * 4 * 3], ids=["all penalties", "three at a time"])
def test_penalties_and_class_counts_in_one_batch_give_what_paths_give(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(logistic.BATCH_BYTES, "cpu", limit)
    factor, codes, classes = several_targets(2, 120, (2, 4, 3, 2))
    valid = torch.ones(4, 120)
    valid[2, ::7] = 0
    rest = valid, torch.arange(120) % 4, PENALTIES
    batch = fit_logistic(factor.Q, factor.s, codes, *rest, classes)
    monkeypatch.setitem(logistic.TOGETHER, "cpu", False)
    for t, c in enumerate(classes.tolist()):
        alone = fit_logistic(factor.Q, factor.s, codes[[t]], valid[[t]], *rest[1:], classes[[t]])
        torch.testing.assert_close(batch.inner_loss[:, :, [t]], alone.inner_loss, atol=2e-4, rtol=2e-3)
        assert torch.equal(batch.penalty[:, [t]], alone.penalty)
        assert not batch.rotated[:, c:, t].any()
        weights = (fit.rotated[:, :c, k] for fit, k in ((batch, t), (alone, 0)))
        found = [(w[..., :-1] @ factor.Q.mT + w[..., -1:]).softmax(1) for w in weights]
        torch.testing.assert_close(*found, atol=2e-3, rtol=0)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_launches_of_logistic_probes_do_not_grow_with_penalties_positions_or_targets() -> None:
    def launches(penalties: tuple[float, ...], n_positions: int, classes: tuple[int, ...]) -> int:
        factor, codes, n_classes = several_targets(n_positions, 60, classes)
        valid, fold = torch.ones(len(classes), 60), torch.arange(60) % 2
        with Work(device="cpu") as work:
            fit_logistic(factor.Q, factor.s, codes, valid, fold, penalties, n_classes)
        return work.n_launches

    few = launches((1e-1, 1e1), 1, (2, 3))
    assert launches(tuple(np.geomspace(1e-1, 1e1, 8)), 1, (2, 3)) < 1.6 * few
    assert launches((1e-1, 1e1), 6, (2, 3) * 3) < 1.6 * few
    assert few < 1_500


def test_nets_trained_together_equal_nets_trained_alone_by_plain_torch() -> None:
    settings = MlpSettings(width=5, depth=2, steps=12, learning_rate=1e-2, batch_size=16, seed=3)
    random = torch.Generator().manual_seed(0)
    X, Y = torch.randn(2, 40, 6, generator=random), torch.randint(0, 3, (4, 40), generator=random)
    used = (torch.rand(4, 40, generator=random) > 0.3).float()
    penalty = torch.rand(2, 4, generator=random) * 0.1
    mask = torch.zeros(4, 3)
    nets = MlpBatch(2, 6, 4, 3, settings, X.device)
    start = [w.detach().clone() for w in (*nets.weights, *nets.biases)]
    nets.fit(X, Y, used, penalty, mask)
    together = nets.predict(X, mask)
    for b, t in ((0, 0), (1, 3)):
        linear = [torch.nn.Linear(6, 5), torch.nn.Linear(5, 5), torch.nn.Linear(5, 3)]
        for i, layer in enumerate(linear):
            place = (b, slice(5 * t, 5 * t + 5)) if i == 0 else (b * 4 + t,)
            layer.weight.data, layer.bias.data = start[i][place].clone(), start[3 + i][place][:, 0].clone()
        net = torch.nn.Sequential(linear[0], torch.nn.ReLU(), linear[1], torch.nn.ReLU(), linear[2])
        optimiser = torch.optim.Adam(
            [
                {"params": [layer.weight for layer in linear], "weight_decay": float(penalty[b, t])},
                {"params": [layer.bias for layer in linear]},
            ]
        )
        order, generator = torch.empty(0, dtype=torch.int64), torch.Generator().manual_seed(settings.seed + 1)
        for step in range(settings.steps):
            if len(order) < 16:
                order = torch.randperm(40, generator=generator)
            rows, order = order[:16], order[16:]
            rows = rows[used[t, rows] > 0]
            for group in optimiser.param_groups:
                group["lr"] = 1e-2 * min(1.0, 2.0 * (1.0 - step / settings.steps))
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(X[b, rows]), Y[t, rows]).backward()
            optimiser.step()
        torch.testing.assert_close(net(X[b]), together[b, t], atol=1e-5, rtol=1e-4)


def test_mlp_solves_what_no_linear_probe_can() -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(300, 4)).astype(np.float32)
    labels = torch.from_numpy((X[:, 0] * X[:, 1] > 0).astype(np.int64))
    fit = fit_mlp(
        torch.from_numpy(X[None, :200]),
        torch.from_numpy(X[None, 200:]),
        labels[None, :200],
        torch.ones(1, 200),
        torch.arange(200) % 5,
        (1e-3, 100.0),
        torch.tensor([2]),
        MlpSettings(width=16, steps=150, learning_rate=1e-2),
    )
    assert fit.penalty.tolist() == [[0]]
    assert float((fit.output[0, 0].argmax(1) == labels[200:]).float().mean()) > 0.85


@pytest.fixture(scope="module")
def both_engines() -> pl.DataFrame:
    """Scores of 216 probes by both engines, joined."""
    n, d, n_positions = 500, 12, 9
    random = np.random.default_rng(0)
    latent = random.normal(size=(n, 16))
    features = np.stack(
        [latent @ random.normal(size=(16, d)) + (1 + p) * random.normal(size=(n, d)) for p in range(n_positions)], 1
    ).astype(np.float16)
    targets = [
        make_target(f"n{i}", "continuous", np.where(random.random(n) < 0.1 * (i % 4 == 0), np.nan, latent[:, i]))
        for i in range(12)
    ] + [make_target(f"c{i}", "categorical", latent[:, i : i + 2 + i % 3].argmax(1).astype(str)) for i in range(12)]
    split = make_split(range(n), 0.6, 2, 0)
    tables = [
        fit_grid(
            features,
            targets,
            ProbeConfig(engine=engine, controls=(), penalties=(1e-3, 1e-1, 10.0), n_folds=2, n_bootstrap=0),
            split,
            tap="decoder",
            layer=0,
            positions=[f"text_{p:02d}" for p in range(n_positions)],
        )
        for engine in ("batched", "sklearn")
    ]
    return tables[0].join(tables[1], on=["position", "attribute", "solver"], suffix="_sklearn")


@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_engines_agree_on_every_held_out_score_within_half_a_point(both_engines: pl.DataFrame, solver: str) -> None:
    assert both_engines.height >= 200
    rows = both_engines.filter(solver=solver)
    assert (rows["score"] - rows["score_sklearn"]).abs().max() <= 0.005
    assert rows["penalty"].to_list() == rows["penalty_sklearn"].to_list()
    assert rows["score"].max() > 0.6


def test_mlp_engines_agree_on_the_mean_held_out_score() -> None:
    n, d = 900, 8
    random = np.random.default_rng(0)
    latent = random.normal(size=(n, 6))
    features = np.stack([latent @ random.normal(size=(6, d)) + random.normal(size=(n, d)) for _ in range(3)], 1)
    targets = [make_target(f"n{i}", "continuous", latent[:, i] * latent[:, i + 1]) for i in range(3)]
    targets += [make_target(f"c{i}", "categorical", latent[:, i : i + 3].argmax(1)) for i in range(3)]
    scores = {}
    for engine in ("batched", "sklearn"):
        config = ProbeConfig(
            solvers=("mlp",),
            engine=engine,
            controls=(),
            mlp_penalties=(0.03,),
            mlp_steps=200,
            mlp_width=16,
            n_bootstrap=0,
        )
        table = fit_grid(
            features.astype(np.float32),
            targets,
            config,
            make_split(range(n), 0.6, 2, 0),
            tap="decoder",
            layer=0,
            positions=["a", "b", "c"],
        )
        scores[engine] = table["score"].mean()
    assert scores["batched"] == pytest.approx(scores["sklearn"], abs=0.01)


class Elsewhere(torch.Tensor):
    """A tensor as on a GPU: numpy takes it only after `.cpu()`."""

    def cpu(self, *_: object, **__: object) -> torch.Tensor:  # type: ignore[override]
        return self.as_subclass(torch.Tensor)

    def numpy(self, *_: object, **__: object) -> np.ndarray:  # type: ignore[override]
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")


@pytest.mark.parametrize("solver", ["ridge", "logistic", "mlp", "of a package"])
def test_scikit_learn_and_probes_of_packages_take_features_that_lie_on_a_gpu(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    features = torch.from_numpy(random.normal(size=(2, 60, 4))).float()
    values = features[0, :, 0].numpy() + features[1, :, 1].numpy()
    split = make_split(range(60), 0.5, 2, 0)
    labels = [make_labels(make_target("kind", "categorical", (values > 0).astype(str)), split, 0)]
    if solver == "of a package":
        probe = UserProbe(lambda _, penalty: LogisticRegression(C=1 / penalty))
        monkeypatch.setattr(engines, "load_user_probe", lambda _: probe)
    config = ProbeConfig(engine="sklearn", controls=("shuffled",), penalties=(0.1, 1.0), mlp_steps=5)
    parts = features[:, split.train], features[:, split.test]
    run = engines.user_solver(solver) if solver == "of a package" else engines.find_solver("sklearn", solver)
    here = run(engines.Block(*parts, split.fold, config), labels)["kind"]
    there = run(engines.Block(*(p.as_subclass(Elsewhere) for p in parts), split.fold, config), labels)["kind"]
    np.testing.assert_array_equal(here.predicted, there.predicted)
