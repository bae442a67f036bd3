"""Small MLP probes (the paper: two hidden layers), many trained at once.

Shapes: B positions, n training images, m held-out images, d width, T nets a position, w hidden width, O outputs.

All nets of a call take the same steps on the same minibatches, so the first layer of all nets of a position is one
product X (b, d) @ (d, T w) and the others are batched products over B T nets. Loss as scikit-learn's `MLPClassifier` /
`MLPRegressor`: mean cross-entropy, or half the mean squared error, + lam/2 |W|^2 over weights (not biases); ReLU,
Glorot-uniform start, Adam. The learning rate is constant for half the steps, then falls to zero in a line. Each net's
start depends on `seed` alone, so results do not depend on which nets share a call.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

MASKED = -1e9  # logit of a class a target does not have


@dataclass(frozen=True)
class MlpSettings:
    """How a net is built and trained; see ProbeConfig for units."""

    width: int = 64
    depth: int = 2
    steps: int = 300
    learning_rate: float = 3e-3
    batch_size: int = 200
    seed: int = 0


class MlpBatch:
    """T nets on each of B positions."""

    def __init__(self, B: int, d: int, T: int, n_outputs: int, settings: MlpSettings, device: torch.device) -> None:
        self.B, self.T, self.settings = B, T, settings
        sizes = [d] + [settings.width] * settings.depth + [n_outputs]
        random = torch.Generator().manual_seed(settings.seed)
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            bound = math.sqrt(6.0 / (fan_in + fan_out))
            start = (torch.rand(fan_in + 1, fan_out, generator=random) * 2 - 1) * bound
            shape = (B, fan_in, T, fan_out) if i == 0 else (B * T, fan_in, fan_out)
            weight = start[:-1, None, :] if i == 0 else start[:-1]
            self.weights.append(weight.expand(shape).contiguous().to(device).requires_grad_())
            self.biases.append(start[-1].expand(B * T, 1, fan_out).contiguous().to(device).requires_grad_())

    def forward(self, X: Float[Tensor, "B b d"]) -> Float[Tensor, "B T b O"]:
        first = self.weights[0]
        hidden = X @ first.flatten(2)  # B b (T w)
        hidden = hidden.view(self.B, X.shape[1], self.T, -1).transpose(1, 2).reshape(self.B * self.T, X.shape[1], -1)
        hidden = hidden + self.biases[0]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            hidden = torch.baddbmm(bias, torch.relu(hidden), weight)
        return hidden.view(self.B, self.T, X.shape[1], -1)

    def fit(
        self,
        X: Float[Tensor, "B n d"],
        Y: Tensor,
        used: Float[Tensor, "T n"],
        penalty: Float[Tensor, "B T"],
        mask: Tensor,
    ) -> None:
        """Train all nets; `used` is 1 for the rows of a net, `mask` (T, O) is added to its logits."""
        settings = self.settings
        parameters = self.weights + self.biases
        optimiser = torch.optim.Adam(parameters, lr=settings.learning_rate, fused=True)
        n, b = X.shape[1], min(settings.batch_size, X.shape[1])
        random = torch.Generator().manual_seed(settings.seed + 1)
        decay = [penalty[:, None, :, None]] + [penalty.reshape(-1, 1, 1)] * (len(self.weights) - 1)
        order = torch.empty(0, dtype=torch.int64)
        for step in range(settings.steps):
            if len(order) < b:
                order = torch.randperm(n, generator=random)
            rows, order = order[:b].to(X.device), order[b:]
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * min(1.0, 2.0 * (1.0 - step / settings.steps))
            output = self.forward(X[:, rows])
            part = used[:, rows]
            weight = part / part.sum(1, keepdim=True).clamp_min(1.0)
            loss = (net_loss(output, Y[:, rows], mask) * weight).sum()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            with torch.no_grad():
                for tensor, lam in zip(self.weights, decay, strict=True):
                    tensor.grad.addcmul_(tensor, lam)  # type: ignore[union-attr]
            optimiser.step()

    @torch.no_grad()
    def predict(self, X: Float[Tensor, "B m d"], mask: Tensor) -> Float[Tensor, "B T m O"]:
        return self.forward(X) + mask[:, None]


def net_loss(output: Float[Tensor, "B T b O"], Y: Tensor, mask: Float[Tensor, "T O"]) -> Float[Tensor, "B T b"]:
    """Loss of each row: cross-entropy for integer Y (T, b), half the squared error for float Y."""
    if Y.is_floating_point():
        return 0.5 * (output[..., 0] - Y).square()
    logits = output + mask[:, None]
    chosen = logits.gather(3, Y.expand(output.shape[0], -1, -1)[..., None])[..., 0]
    return torch.logsumexp(logits, 3) - chosen


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

    The penalty is chosen on inner fold 0 after training on the other folds, then the net is trained anew on all
    training images. With one penalty the choice, and its cost, falls away.
    """
    B, _, d = X.shape
    T = len(Y)
    n_outputs = 1 if n_classes is None else int(n_classes.max())
    mask = X.new_zeros(T, n_outputs)
    if n_classes is not None:
        mask[torch.arange(n_outputs, device=X.device) >= n_classes[:, None]] = MASKED
    best = torch.zeros(B, T, dtype=torch.int64, device=X.device)
    if len(penalties) > 1:
        losses = []
        inside = (fold == 0).to(X.dtype)
        for lam in penalties:
            nets = MlpBatch(B, d, T, n_outputs, settings, X.device)
            nets.fit(X, Y, valid * (1 - inside), X.new_full((B, T), lam), mask)
            with torch.no_grad():
                held_out = valid * inside
                loss = (net_loss(nets.forward(X), Y, mask) * held_out).sum(2) / held_out.sum(1).clamp_min(1.0)
            losses.append(loss)
        best = torch.stack(losses).argmin(0)
    nets = MlpBatch(B, d, T, n_outputs, settings, X.device)
    nets.fit(X, Y, valid, X.new_tensor(penalties)[best], mask)
    return MlpFit(best, nets.predict(X_test, mask))
