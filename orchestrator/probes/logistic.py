"""Multinomial logistic regression, L2, many problems at once on shared features.

Shapes: n images, k rotated width, C classes, P problems (attribute x fold x control), all on the same Q (n, k).

Objective of one problem, as scikit-learn's `LogisticRegression` with C = 1 / alpha: mean cross-entropy over the
problem's n rows + lam/2 |W|^2 with lam = alpha / n, bias unpenalised. alpha is absolute, so folds keep it, as in
scikit-learn. For two classes scikit-learn penalises the one vector w = w1 - w0, which in the symmetric form here is
2 lam.

Solved by L-BFGS. Its first metric is the Hessian at W = 0, diag(s/n)/C + lam: diagonal in Q, hence shared by all
problems. Logits are linear in the step, so a whole line search costs one product with Q. Both products of an
iteration are large matrix products over all problems.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

MEMORY = 8
MAX_ITERATIONS = 300
TOLERANCE = 1e-4  # largest gradient entry, scikit-learn's default


@dataclass
class Problems:
    """P problems of equal class count on one feature matrix with a column of ones appended."""

    Q: Float[Tensor, "n k1"]
    s: Float[Tensor, " k1"]
    onehot: Float[Tensor, "n C P"]
    weight: Float[Tensor, "n P"]
    """Weights of each problem's rows, summing to one; zero for held-out, missing or left-out images."""
    n_rows: Float[Tensor, " P"]
    """Rows of each problem that count."""

    def take(self, index: Int[Tensor, " p"]) -> Problems:
        """The problems at `index` alone."""
        return Problems(self.Q, self.s, self.onehot[:, :, index], self.weight[:, index], self.n_rows[index])


def make_problems(
    Q: Float[Tensor, "n k"], s: Float[Tensor, " k"], codes: Int[Tensor, "n P"], used: Float[Tensor, "n P"], C: int
) -> Problems:
    """Problems on Q with labels `codes` (0..C-1); `used` is 1 for the rows of a problem, else 0."""
    n = Q.shape[0]
    Q1 = torch.cat([Q, Q.new_ones(n, 1)], 1)
    s1 = torch.cat([s / n, s.new_ones(1)])
    onehot = torch.nn.functional.one_hot(codes, C).permute(0, 2, 1).to(Q.dtype)
    n_rows = used.sum(0)
    return Problems(Q1, s1, onehot, used / n_rows, n_rows)


def solve(
    problems: Problems,
    alpha: Float[Tensor, " P"],
    W: Float[Tensor, "k1 C P"],
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> tuple[Float[Tensor, "k1 C P"], int]:
    """Minimise from W; problems that have converged leave the batch. Returns weights (bias last) and iterations."""
    result = W.clone()
    active = torch.arange(W.shape[2], device=W.device)
    state = _Descent(problems, alpha, W)
    iterations = 0
    for iterations in range(max_iterations + 1):
        gradient = state.gradient()
        unfinished = gradient.abs().amax((0, 1)) >= tolerance
        n_left = int(unfinished.sum())
        if n_left == 0 or iterations == max_iterations or state.stuck:
            break
        if n_left <= 0.75 * len(active):  # narrowing copies the state, so only when it pays
            result[:, :, active] = state.W
            keep = unfinished.nonzero()[:, 0]
            active = active[keep]
            gradient = gradient[:, :, keep]
            state.narrow(keep)
        state.step(gradient)
    result[:, :, active] = state.W
    return result, iterations


class _Descent:
    """L-BFGS on all problems of a batch, each with its own curvature pairs and step length."""

    def __init__(self, problems: Problems, alpha: Tensor, W: Tensor) -> None:
        self.p, self.W = problems, W
        n_classes = W.shape[1]
        lam = alpha / problems.n_rows * (2 if n_classes == 2 else 1)
        self.penalty = torch.cat([lam.expand(W.shape[0] - 1, 1, -1), torch.zeros_like(lam)[None, None]])
        self.metric = 1.0 / (problems.s[:, None, None] / n_classes + self.penalty)
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.before: tuple[Tensor, Tensor] | None = None
        self.logits = self._product(W)
        self.probability = torch.softmax(self.logits, 1)
        self.stuck = False

    def _product(self, W: Tensor) -> Tensor:
        return (self.p.Q @ W.reshape(W.shape[0], -1)).view(-1, *W.shape[1:])

    def narrow(self, keep: Tensor) -> None:
        self.p = self.p.take(keep)
        self.W, self.logits = self.W[:, :, keep], self.logits[:, :, keep]
        self.penalty, self.metric = self.penalty[:, :, keep], self.metric[:, :, keep]
        self.probability = self.probability[:, :, keep]
        self.pairs = [(a[:, :, keep], b[:, :, keep], r[keep]) for a, b, r in self.pairs]
        if self.before:
            self.before = (self.before[0][:, :, keep], self.before[1][:, :, keep])

    def gradient(self) -> Tensor:
        residual = (self.probability - self.p.onehot).mul_(self.p.weight[:, None])
        gradient = (self.p.Q.mT @ residual.view(residual.shape[0], -1)).view(self.W.shape)
        return gradient.addcmul_(self.penalty, self.W)

    def _direction(self, gradient: Tensor) -> Tensor:
        if self.before:
            moved, old = self.before
            change = gradient - old
            curvature = _dot(moved, change)
            inverse = torch.where(curvature > 1e-12, 1.0 / curvature, torch.zeros_like(curvature))
            self.pairs = [*self.pairs[-(MEMORY - 1) :], (moved, change, inverse)]
        q = gradient.clone()
        coefficients = []
        for a, b, r in reversed(self.pairs):
            c = r * _dot(a, q)
            q.addcmul_(b, -c)
            coefficients.append(c)
        q.mul_(self.metric)
        for (a, b, r), c in zip(self.pairs, reversed(coefficients), strict=True):
            q.addcmul_(a, c - r * _dot(b, q))
        return q.neg_()

    def step(self, gradient: Tensor) -> None:
        direction = self._direction(gradient)
        along = self._product(direction)
        slope = _dot(gradient, direction)
        ww, wd, dd = (
            _dot(self.penalty * a, b) for a, b in ((self.W, self.W), (self.W, direction), (direction, direction))
        )
        # Newton's length along the direction, from the exact second derivative there
        weighted = self.probability * along
        second = (weighted * along).sum(1) - weighted.sum(1).square()
        t = -slope / ((self.p.weight * second).sum(0) + dd).clamp_min(1e-20)
        start = self._loss(self.logits) + 0.5 * ww
        slack = 4 * torch.finfo(start.dtype).eps * start.abs()  # rounding of the loss itself
        for _ in range(12):
            moved = self.logits + t * along
            worse = self._loss(moved) + 0.5 * (ww + 2 * t * wd + t * t * dd) > start + 1e-4 * t * slope + slack
            if not worse.any():
                break
            t = torch.where(worse, 0.5 * t, t)
        else:
            t = torch.where(worse, torch.zeros_like(t), t)
            moved = self.logits + t * along
            self.stuck = bool((t == 0).all())
        change = t * direction
        self.before = (change, gradient)
        self.W, self.logits, self.probability = self.W + change, moved, torch.softmax(moved, 1)

    def _loss(self, logits: Tensor) -> Tensor:
        return (self.p.weight * (torch.logsumexp(logits, 1) - (logits * self.p.onehot).sum(1))).sum(0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((0, 1))


@dataclass
class LogisticFit:
    """Result of T targets of equal class count on one feature matrix (m held-out images, A penalties)."""

    penalty: Int[Tensor, " T"]
    """Index into the penalties."""
    logits: Float[Tensor, "m C T"]
    weights: Float[Tensor, "k1 C T"]
    """Weights on Q; the last row is the bias."""
    inner_loss: Float[Tensor, "A T"]
    """Cross-entropy of held-out inner folds; infinite where the path had ended."""
    n_iterations: int


def fit_logistic(
    Q: Float[Tensor, "n k"],
    Q_test: Float[Tensor, "m k"],
    s: Float[Tensor, " k"],
    codes: Int[Tensor, "n T"],
    valid: Float[Tensor, "n T"],
    fold: Int[Tensor, " n"],
    penalties: tuple[float, ...],
    n_classes: int,
) -> LogisticFit:
    """Fit T targets, each with its own best penalty by K-fold cross-entropy, from the largest penalty downwards.

    Each fold's fit starts from the same fold's fit at the penalty before, never from one that saw the held-out rows.
    A target's path ends when its held-out loss has risen at two penalties in a row: it is overfitting from there on.
    Penalties are relative to the number of valid images. A single penalty is taken without folds.
    """
    T, K = codes.shape[1], int(fold.max()) + 1 if len(penalties) > 1 else 0  # one penalty: nothing to choose
    inside = (fold[:, None] == torch.arange(K, device=fold.device)).to(Q.dtype)  # n K
    used = torch.cat([(valid[:, :, None] * (1 - inside[:, None])), valid[:, :, None]], 2)  # n T K+1, whole set last
    held_out = valid[:, :, None] * inside[:, None]
    problems = make_problems(Q, s, codes.repeat_interleave(K + 1, 1), used.flatten(1), n_classes)
    W = Q.new_zeros(Q.shape[1] + 1, n_classes, T * (K + 1))
    order = sorted(range(len(penalties)), key=lambda a: -penalties[a])
    n_valid = valid.sum(0)
    inner = Q.new_full((len(penalties), T), torch.inf)
    best_W, best = W[:, :, K :: K + 1].clone(), torch.full((T,), order[0], device=Q.device)
    best_loss, last = Q.new_full((T,), torch.inf), Q.new_full((T,), torch.inf)
    rises = torch.zeros(T, dtype=torch.int64, device=Q.device)
    going = torch.arange(T, device=Q.device)
    n_iterations = 0
    for a in order:
        columns = (going[:, None] * (K + 1) + torch.arange(K + 1, device=Q.device)).flatten()
        part = problems.take(columns)
        alpha = (penalties[a] * n_valid[going]).repeat_interleave(K + 1)
        W[:, :, columns], n = solve(part, alpha, W[:, :, columns])
        n_iterations += n
        logits = (part.Q @ W[:, :, columns].flatten(1)).view(len(Q), n_classes, -1)
        loss = (torch.logsumexp(logits, 1) - (logits * part.onehot).sum(1)).view(len(Q), len(going), K + 1)[:, :, :K]
        loss = (loss * held_out[:, going]).sum((0, 2)) / n_valid[going]
        inner[a, going] = loss
        better = loss < best_loss[going]
        chosen = going[better]
        best[chosen], best_loss[chosen] = a, loss[better]
        best_W[:, :, chosen] = W[:, :, chosen * (K + 1) + K]
        rises[going] = torch.where(loss > last[going], rises[going] + 1, 0)
        last[going] = loss
        going = going[rises[going] < 2]
        if len(going) == 0:
            break
    logits = (Q_test @ best_W[:-1].flatten(1)).view(len(Q_test), n_classes, T) + best_W[-1]
    return LogisticFit(best, logits, best_W, inner, n_iterations)
