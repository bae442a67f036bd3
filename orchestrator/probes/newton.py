"""Batched solver of L2-regularised multinomial logistic regressions on shared features.

Shapes: B feature matrices (positions), n images, k rotated width (k1 with a column of ones), C classes, P problems
(attribute x fold x control x penalty), the same P problems on each matrix. Images are the last axis of logits,
(B, C, P, n), so that elementwise steps are contiguous in memory.

Objective of one problem, as scikit-learn's `LogisticRegression` with C = 1 / alpha: mean cross-entropy over the
problem's n rows + lam/2 |W|^2 with lam = alpha / n, bias unpenalised. alpha is absolute and the same in all folds, as
in scikit-learn. For two classes scikit-learn penalises the one vector w = w1 - w0, which in the symmetric form here is
2 lam.

Solved by truncated Newton steps: conjugate gradients on the Newton equations of all problems at once, preconditioned by
the Hessian at W = 0, diag(s/n)/C + lam, which is diagonal in Q, hence shared by all problems. Logits are linear in the
step, so a whole line search costs one product with Q; the labels enter through one constant product. Each inner
iteration is two large matrix products over all problems and a few elementwise steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MAX_ITERATIONS, MAX_INNER = 100, 50
"""Newton steps, and iterations of conjugate gradients in each."""
FORCING = 0.2
"""A Newton equation counts as solved when its preconditioned residual has fallen to this share."""
BIAS_CURVATURE = 1e-5
"""Added to the curvature along biases in the Newton equations: a shift of all biases together changes no loss, and its
rounding error would otherwise be divided by zero."""
TOLERANCE = 1e-4
"""Largest gradient entry at the end; scikit-learn's default."""


@dataclass(frozen=True)
class Problems:
    """P problems of at most C classes on B feature matrices with a column of ones appended."""

    Q: Float[Tensor, "B n k1"]
    s: Float[Tensor, "B k1"]
    weight: Float[Tensor, "P n"]
    """Weights of each problem's rows, summing to one; zero for held-out, missing or excluded images."""
    labelled: Float[Tensor, "B C P k1"]
    """Weighted sum of the rows of each class; the labels enter only through it."""
    n_rows: Float[Tensor, " P"]
    """Number of used rows of each problem."""
    n_classes: Int[Tensor, " P"]
    """Number of classes of each problem; the weights of further ones are zero, and their logits -inf."""

    @property
    def absent(self) -> Bool[Tensor, "C P 1"]:
        """Which of the C classes a problem does not have."""
        return absent_classes(self.labelled.shape[1], self.n_classes)[:, :, None]

    def take(self, index: Int[Tensor, " p"]) -> Problems:
        """The problems at `index`."""
        parts = {name: getattr(self, name)[index] for name in ("weight", "n_rows", "n_classes")}
        return replace(self, labelled=self.labelled[:, :, index], **parts)

    def logits(self, W: Float[Tensor, "B C P k1"]) -> Float[Tensor, "B C P n"]:
        """Logits of all rows; -inf for classes that a problem does not have."""
        return self.product(W).masked_fill_(self.absent, -torch.inf)

    def product(self, W: Float[Tensor, "B C P k1"]) -> Float[Tensor, "B C P n"]:
        """Rows times weights: logits but for absent classes, and their change along a direction."""
        return (W.flatten(1, 2) @ self.Q.mT).view(*W.shape[:3], -1)

    def take_matrices(self, index: Int[Tensor, " b"]) -> Problems:
        """The problems on the feature matrices at `index`."""
        return replace(self, Q=self.Q[index], s=self.s[index], labelled=self.labelled[index])


def absent_classes(C: int, n_classes: Int[Tensor, " P"]) -> Bool[Tensor, "C P"]:
    """Which of C classes a problem of fewer does not have."""
    return torch.arange(C, device=n_classes.device)[:, None] >= n_classes


def make_problems(
    Q: Float[Tensor, "B n k"],
    s: Float[Tensor, "B k"],
    codes: Int[Tensor, "P n"],
    used: Float[Tensor, "P n"],
    n_classes: Int[Tensor, " P"],
    C: int,
) -> Problems:
    """Problems on Q with labels `codes` (0..C-1); `used` is 1 for the rows of a problem, else 0."""
    B, n, _ = Q.shape
    Q1 = torch.cat([Q, Q.new_ones(B, n, 1)], 2)
    s1 = torch.cat([s / n, s.new_ones(B, 1)], 1)
    n_rows = used.sum(1)
    weight = used / n_rows[:, None]
    onehot = (codes == torch.arange(C, device=codes.device)[:, None, None]) * weight  # C P n
    labelled = (onehot.flatten(0, 1).to(Q.dtype) @ Q1).view(B, C, len(codes), -1)
    return Problems(Q1, s1, weight, labelled, n_rows, n_classes)


def solve(
    problems: Problems,
    alpha: Float[Tensor, "B P"],
    W: Float[Tensor, "B C P k1"],
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Float[Tensor, "B C P k1"]:
    """Minimise from W (bias last); converged matrices and problems are removed from the batch."""
    result = W.clone()
    matrices, columns = (torch.arange(size, device=W.device) for size in (W.shape[0], W.shape[2]))
    state = _Newton(problems, alpha, W)
    for iteration in range(max_iterations + 1):
        gradient = state.gradient()
        unfinished = (gradient.abs().amax((1, 3)) >= tolerance) & ~state.stuck  # B P
        if iteration == max_iterations or not bool(unfinished.any()):
            break
        keep_b, keep_p = unfinished.any(1).nonzero()[:, 0], unfinished.any(0).nonzero()[:, 0]
        if (
            len(keep_b) * len(keep_p) <= 0.75 * unfinished.numel()
        ):  # removing problems copies the state: only if enough have converged
            result[matrices[:, None], :, columns] = state.W.transpose(1, 2)
            matrices, columns = matrices[keep_b], columns[keep_p]
            gradient, unfinished = gradient[keep_b][:, :, keep_p], unfinished[keep_b][:, keep_p]
            state.narrow(keep_b, keep_p)
        state.step(gradient, unfinished)
    result[matrices[:, None], :, columns] = state.W.transpose(1, 2)
    return result


class _Newton:
    """Truncated Newton steps on all problems of a batch; each has its own direction and step length."""

    def __init__(self, problems: Problems, alpha: Tensor, W: Tensor) -> None:
        self.p, self.W = problems, W
        n_classes = problems.n_classes
        lam = (alpha / problems.n_rows * (1 + (n_classes == 2)))[:, None, :, None]
        self.penalty = torch.cat([lam.expand(-1, -1, -1, W.shape[3] - 1), torch.zeros_like(lam)], 3)  # B 1 P k1
        self.curvature = torch.cat([self.penalty[..., :-1], torch.full_like(lam, BIAS_CURVATURE)], 3)
        self.metric = 1.0 / (problems.s[:, None, None] / n_classes[:, None] + self.penalty)
        self.logits = problems.logits(W)
        self.e, self.total, self.partition = _exponentials(self.logits, self.p.weight)
        self.stuck = torch.zeros(alpha.shape, dtype=torch.bool, device=W.device)

    def narrow(self, keep_b: Tensor, keep_p: Tensor) -> None:
        def cut(tensor: Tensor) -> Tensor:
            return tensor[keep_b][:, :, keep_p]

        self.p = self.p.take_matrices(keep_b).take(keep_p)
        self.W, self.logits, self.e = cut(self.W), cut(self.logits), cut(self.e)
        self.total, self.partition, self.stuck = (
            x[keep_b][:, keep_p] for x in (self.total, self.partition, self.stuck)
        )
        self.penalty, self.curvature, self.metric = cut(self.penalty), cut(self.curvature), cut(self.metric)

    def gradient(self) -> Float[Tensor, "B C P k1"]:
        weighted = self.e * (self.p.weight / self.total)[:, None]
        gradient = (weighted.flatten(1, 2) @ self.p.Q).view(self.W.shape)
        return gradient.sub_(self.p.labelled).addcmul_(self.penalty, self.W)

    def _direction(self, gradient: Tensor, unfinished: Bool[Tensor, "B P"]) -> Tensor:
        """Conjugate gradients on the Newton equations, until the preconditioned residual is `FORCING` of its start."""
        shares = self.e / self.total[:, None]
        weighted = shares * self.p.weight
        x, r = torch.zeros_like(gradient), -gradient
        d = self.metric * r
        size = _dot(r, d)
        end, active = FORCING**2 * size, unfinished
        for _ in range(MAX_INNER):
            along = self.p.product(d)
            along = (along - (shares * along).sum(1, keepdim=True)).mul_(weighted)
            image = (along.flatten(1, 2) @ self.p.Q).view(d.shape).addcmul_(self.curvature, d)
            step = _wide((size / _dot(d, image).clamp_min(1e-30)).where(active, 0.0))
            x.addcmul_(step, d)
            r.addcmul_(step, image, value=-1)
            z = self.metric * r
            before, size = size, _dot(r, z)
            active = active & (size > end)
            if not bool(active.any()):
                break
            d = torch.addcmul(z, _wide(size / before.clamp_min(1e-30)), d)
        return x

    def step(self, gradient: Tensor, unfinished: Bool[Tensor, "B P"]) -> None:
        direction = self._direction(gradient, unfinished)
        along = self.p.product(direction)
        slope = _dot(gradient, direction)
        penalised = self.penalty * direction
        # apart from the partition function, the loss is quadratic in the step length: its two coefficients
        linear, square = _dot(self.W, penalised) - _dot(self.p.labelled, direction), _dot(direction, penalised)
        t = torch.ones_like(slope)
        slack = 8 * torch.finfo(t.dtype).eps * (1.0 + self.partition.abs())  # rounding error of the loss
        for _ in range(12):
            moved = torch.addcmul(self.logits, _wide(t), along)
            e, total, partition = _exponentials(moved, self.p.weight)
            rise = partition - self.partition + t * linear + 0.5 * t * t * square
            worse = ~(rise <= 1e-4 * t * slope + slack)
            if not bool(worse.any()):
                break
            t = torch.where(worse, 0.5 * t, t)
        else:
            t = torch.where(worse, torch.zeros_like(t), t)
            moved = torch.addcmul(self.logits, _wide(t), along)
            e, total, partition = _exponentials(moved, self.p.weight)
            self.stuck = self.stuck | worse
        self.W = torch.addcmul(self.W, _wide(t), direction)
        self.logits, self.e, self.total, self.partition = moved, e, total, partition


def _exponentials(
    logits: Float[Tensor, "B C P n"], weight: Float[Tensor, "P n"]
) -> tuple[Float[Tensor, "B C P n"], Float[Tensor, "B P n"], Float[Tensor, "B P"]]:
    """Shifted exponentials, their sums over classes, and each problem's mean log partition function."""
    shift = logits.amax(1)
    e = (logits - shift[:, None]).exp_()
    total = e.sum(1)
    return e, total, (weight * (total.log() + shift)).sum(2)


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, "B P"]:
    return (a * b).sum((1, 3))


def _wide(t: Float[Tensor, "B P"]) -> Float[Tensor, "B 1 P 1"]:
    return t[:, None, :, None]
