"""Small MLP probes (in the paper: two hidden layers), trained in a batch.

Shapes: B positions, n training images, b images of a minibatch, m held-out images, d width, T nets per position,
w hidden width, O outputs. Activations are kept features first, (B T, w, b): the first layer of all nets of a position
is then one product (T w, d) @ (d, b), every other layer a batched product over B T nets, without transposes.

All nets of a call train on the same minibatches. Loss as scikit-learn's `MLPClassifier` / `MLPRegressor`:
mean cross-entropy, or half the mean squared error, + lam/2 |W|^2 over weights (not biases); ReLU, Glorot-uniform
start, Adam. The learning rate is constant for half the steps, then decays linearly to zero. Each net's initialisation
depends on `seed` only, so that results do not depend on the other nets of a call.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

MASKED = -1e9  # logit of a class that a target does not have
BATCH_BYTES = {"cpu": 8 * 2**20, "cuda": 2 * 2**30}  # weights and activations trained at a time: size of a core's cache


@dataclass(frozen=True)
class MlpSettings:
    """Architecture and training of a net; units as in `ProbeConfig`."""

    width: int = 64
    depth: int = 2
    steps: int = 150
    learning_rate: float = 6e-3
    batch_size: int = 200
    seed: int = 0


class MlpBatch:
    """T nets on each of B positions. First weights (B, T w, d), the others (B T, out, in); biases (..., out, 1)."""

    def __init__(self, B: int, d: int, T: int, n_outputs: int, settings: MlpSettings, device: torch.device) -> None:
        self.B, self.T, self.settings = B, T, settings
        sizes = [d] + [settings.width] * settings.depth + [n_outputs]
        random = torch.Generator().manual_seed(settings.seed)
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            bound = math.sqrt(6.0 / (fan_in + fan_out))
            start = (torch.rand(fan_out, fan_in + 1, generator=random) * 2 - 1).mul_(bound).to(device)
            copies = (B, T * fan_out) if i == 0 else (B * T, fan_out)
            weights = start.repeat(T, 1) if i == 0 else start
            self.weights.append(weights[:, :-1].expand(*copies, fan_in).contiguous())
            self.biases.append(weights[:, -1:].expand(*copies, 1).contiguous())

    def _forward(self, X: Float[Tensor, "B d b"]) -> Float[Tensor, "BT O b"]:
        """Outputs of all nets."""
        hidden = torch.baddbmm(self.biases[0], self.weights[0], X).relu_().view(self.B * self.T, -1, X.shape[2])
        for weight, bias in zip(self.weights[1:-1], self.biases[1:-1], strict=True):
            hidden = torch.baddbmm(bias, weight, hidden).relu_()
        return torch.baddbmm(self.biases[-1], self.weights[-1], hidden)

    def fit(
        self,
        X: Float[Tensor, "B n d"],
        Y: Tensor,
        used: Float[Tensor, "T n"],
        penalty: Float[Tensor, "B T"],
        mask: Float[Tensor, "T O"],
    ) -> None:
        """Train all nets on Y (T, n), class codes or numbers; `used` is 1 for the rows of a net, else 0."""
        settings, n = self.settings, X.shape[1]
        b = min(settings.batch_size, n)
        optimiser = torch.optim.Adam(self.weights + self.biases, lr=settings.learning_rate, fused=True)
        random = torch.Generator().manual_seed(settings.seed + 1)
        decay = penalty.reshape(-1, 1, 1)
        decays = [penalty.repeat_interleave(settings.width, 1)[..., None]] + [decay] * (len(self.weights) - 1)
        parameters = self.weights + self.biases
        order = torch.empty(0, dtype=torch.int64)
        for step in range(settings.steps):
            if len(order) < b:
                order = torch.randperm(n, generator=random)
            rows, order = order[:b].to(X.device), order[b:]
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * min(1.0, 2.0 * (1.0 - step / settings.steps))
            batch, truth, part = X[:, rows].mT, Y[:, rows], used[:, rows]
            for parameter in parameters:
                parameter.requires_grad_()
            output = self._forward(batch).view(self.B, self.T, -1, b) + mask[:, :, None]
            share = part / part.sum(1, keepdim=True).clamp_min(1.0)
            gradients = torch.autograd.grad((net_loss(output.mT, truth) * share).sum(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.requires_grad_(False).grad = gradient
            for weight, lam in zip(self.weights, decays, strict=True):
                weight.grad.addcmul_(weight, lam)  # type: ignore[union-attr]
            optimiser.step()

    @torch.no_grad()
    def predict(self, X: Float[Tensor, "B m d"], mask: Float[Tensor, "T O"]) -> Float[Tensor, "B T m O"]:
        """Masked logits, or numbers."""
        return (self._forward(X.mT).view(self.B, self.T, -1, X.shape[1]) + mask[:, :, None]).mT


def net_loss(output: Float[Tensor, "B T m O"], Y: Tensor) -> Float[Tensor, "B T m"]:
    """Loss of each row: cross-entropy of logits for integer Y (T, m), half the squared error for float Y."""
    if Y.is_floating_point():
        return 0.5 * (output[..., 0] - Y).square()
    chosen = output.gather(3, Y.expand(output.shape[0], -1, -1)[..., None])[..., 0]
    return torch.logsumexp(output, 3) - chosen


@dataclass
class MlpFit:
    """Result of T targets on B positions."""

    penalty: Int[Tensor, "B T"]
    """Index into the penalties."""
    output: Float[Tensor, "B T m O"]


def fit_mlp(
    X: Float[Tensor, "B n d"],
    X_test: Float[Tensor, "B m d"],
    Y: Tensor,
    valid: Float[Tensor, "T n"],
    fold: Int[Tensor, " n"],
    penalties: tuple[float, ...],
    n_classes: Int[Tensor, " T"] | None,
    settings: MlpSettings,
) -> MlpFit:
    """Fit T targets on B standardised feature matrices; Y (T, n) holds class codes, or numbers without `n_classes`.

    The penalty is chosen on inner fold 0 after training on the other folds, then the net is trained again on all
    training images. With one penalty this selection is skipped.
    """
    T, d = len(Y), X.shape[2]
    n_outputs = 1 if n_classes is None else int(n_classes.max())
    mask = X.new_zeros(T, n_outputs)
    if n_classes is not None:
        mask[torch.arange(n_outputs, device=X.device) >= n_classes[:, None]] = MASKED
    a_position = 4 * T * settings.width * (4 * d + 2 * settings.depth * min(settings.batch_size, X.shape[1]))
    size = max(1, BATCH_BYTES[X.device.type] // a_position)

    def trained(part: slice, used: Tensor, penalty: Tensor) -> MlpBatch:
        nets = MlpBatch(len(penalty), d, T, n_outputs, settings, X.device)
        nets.fit(X[part], Y, used, penalty, mask)
        return nets

    best = torch.zeros(len(X), T, dtype=torch.int64, device=X.device)
    output = X.new_empty(len(X), T, X_test.shape[1], n_outputs)
    inside = (fold == 0).to(X.dtype)
    for b in range(0, len(X), size):
        part = slice(b, b + size)
        if len(penalties) > 1:
            held_out = valid * inside
            losses = []
            for lam in penalties:
                nets = trained(part, valid * (1 - inside), torch.full_like(best[part], lam, dtype=X.dtype))
                losses.append(
                    (net_loss(nets.predict(X[part], mask), Y) * held_out).sum(2) / held_out.sum(1).clamp_min(1.0)
                )
            best[part] = torch.stack(losses).argmin(0)
        output[part] = trained(part, valid, X.new_tensor(penalties)[best[part]]).predict(X_test[part], mask)
    return MlpFit(best, output)
