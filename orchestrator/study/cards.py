"""Cost of a study on a given GPU model: images/s, hours and memory, extrapolated from rates measured on one H200.

Measured (26 November 2026, 28 blocks of width 3,584, 729 visual tokens, bfloat16): operations per second of complete
passes, exact spectra, and the ratio of a LoRA step to a forward pass. Metrics of the present code were not measured:
their time is the counted work (`python -m benchmarks.gpu --counted`) times the earlier ratio of measured to counted
time. For another card, passes are scaled by its dense bfloat16 rate, metrics by its memory bandwidth, and exact spectra
by its float32 rate, from data sheets. A pass takes no less than the launches of its kernels, which is what small models
wait for. Loading and preparing images is assumed to overlap, as it does with eight cores per GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.config import RunConfig, StageName
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.models.planning import Footprint
from orchestrator.study.estimate import START_SECONDS, Machine, stage_seconds

PASS_FLOPS = 520e12
"""Operations/s of a complete forward pass: 8 images in 161 ms."""
ELEMENT_SECONDS = {"norms": 6.5e-12, "gram": 51e-12, "estimate": 73e-12}
"""Seconds per element of hidden state (tokens x width x tap points). For 612 million elements (232 sets of 736 x 3,584)
the counted time is 3.8, 23.6 and 20.3 ms; measured / counted was 1.05, 1.31 and 2.2. `gram` is the default set
including norms, `estimate` the additional cost of one variant."""
SPECTRUM_SECONDS = 0.90e-3 / 736**3
"""Seconds of one exact spectrum divided by the cube of its side, measured with its float32 Gram matrix;
`capture.spectrum: exact` computes four per tap point."""
LAUNCH_SECONDS = 6e-6
"""Seconds that a kernel takes at least, measured on `reference-joint`; the same on every card."""
BLOCK_KERNELS = 40
"""Kernels of a block, counted: 37 to 41 in the reference models."""
METRIC_KERNELS = {"gram": 1942, "estimate": 2014}
"""Kernels of a pass's metrics, of all layers together, counted; classes as in `ELEMENT_SECONDS`."""
STEP_OVER_PASS = {False: 2.74, True: 3.99}
"""Time of a LoRA step divided by that of a forward pass of the same tokens, without and with recomputed activations."""
ACTIVATION_BYTES = 79
"""Bytes of a training step without recomputation, per token, block and unit of width: 48 GB for 6,048 tokens."""
CORES, MEMORY_GB = 16, 128
"""Assumed host resources per card."""


@dataclass(frozen=True)
class Card:
    """Data sheet of a GPU: memory, bytes/s, dense bfloat16 and float32 operations/s."""

    name: str
    memory_gb: float
    bandwidth: float
    bfloat16: float
    float32: float


CARDS = {
    "h200": Card("H200", 141, 4.8e12, 989e12, 67e12),
    "h100": Card("H100", 80, 3.35e12, 989e12, 67e12),
    "a100": Card("A100", 80, 2.04e12, 312e12, 19.5e12),
    "l40s": Card("L40S", 48, 0.864e12, 362e12, 91.6e12),
    "rtx4090": Card("RTX 4090", 24, 1.008e12, 165e12, 82.6e12),
}
MEASURED = CARDS["h200"]


@dataclass(frozen=True)
class CardRate:
    """Capture of one model on one card."""

    model: str
    images_per_s: float
    """Of one card."""
    pass_share: float
    """Share of the forward pass in the total time."""
    memory_gb: float
    """Weights and working memory of a batch of `how.batch_size`, states and metrics included."""
    fits: bool


@dataclass(frozen=True)
class CardPlan:
    """A whole study on a number of cards."""

    card: str
    n: int
    measured: bool
    """Whether the rates were measured on this card; scaled by its data sheet otherwise."""
    rates: list[CardRate]
    seconds: float | None
    """Total of the remaining work; None if a model or a stage is unknown."""

    @property
    def gpu_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.n / 3600


def find_card(name: str) -> Card:
    """Find a card by name.

    Raises:
        ConfigError: no such card.
    """
    key = name.lower().replace(" ", "").replace("-", "")
    if key not in CARDS:
        raise ConfigError(f"no rates for GPU {name!r}; known are {', '.join(CARDS)}.{did_you_mean(key, CARDS)}")
    return CARDS[key]


def machine(card: Card, n: int) -> Machine:
    """A machine of `n` such cards."""
    flops = PASS_FLOPS * card.bfloat16 / MEASURED.bfloat16
    return Machine(CORES * n, float(MEMORY_GB * n), n, card.name, card.memory_gb, flops)


def image_seconds(run: RunConfig, model: Footprint, card: Card) -> tuple[float, float]:
    """Seconds per image of the forward pass and of the metrics on one card, in passes of `how.batch_size` images."""
    batch = run.how.batch_size
    points = model.layers + 2
    elements = model.vision_tokens * model.width * points
    spectrum = run.capture.spectrum
    classes = ["gram"] + ["estimate"] * 4 * (spectrum == "estimate")
    metrics = elements * sum(ELEMENT_SECONDS[name] for name in classes) * MEASURED.bandwidth / card.bandwidth
    metrics = max(metrics, LAUNCH_SECONDS * sum(METRIC_KERNELS[name] for name in classes) / batch)
    if spectrum == "exact":
        side = min(model.vision_tokens, model.width)
        metrics += 4 * points * SPECTRUM_SECONDS * side**3 * MEASURED.float32 / card.float32
    return forward_seconds(model, card, batch), metrics


def forward_seconds(model: Footprint, card: Card, batch: int) -> float:
    """Seconds per image of a pass of `batch` images: of its operations, or of launching its kernels."""
    operations = model.tflop_per_image * 1e12 / machine(card, 1).flops_per_second
    return max(operations, LAUNCH_SECONDS * BLOCK_KERNELS * model.blocks / batch)


def card_rate(run: RunConfig, model: Footprint, card: Card) -> CardRate:
    """Rate and memory of capture on one card."""
    forward, metrics = image_seconds(run, model, card)
    # buffered states in bfloat16, their differences in float32 and as two bfloat16 halves
    kept = run.how.batch_size * model.vision_tokens * model.width * (model.layers + 2) * 10 / 1e9
    memory = model.memory_gb + kept
    return CardRate(
        run.model.label,
        round(1 / (forward + metrics), 2),
        round(forward / (forward + metrics), 3),
        round(memory, 1),
        memory <= card.memory_gb * 0.95,
    )


def card_seconds(stage: StageName, run: RunConfig, images: int, model: Footprint, card: Card, n: int) -> float:
    """Seconds of one stage on `n` cards."""
    if stage == "capture":
        return images * sum(image_seconds(run, model, card)) / n
    if stage == "finetune":
        tune = run.finetune
        batch = max(1, tune.batch_size // tune.accumulate)
        a_pass = forward_seconds(model, card, batch)
        tokens = batch * (model.vision_tokens + 64)
        needed = model.memory_gb + tokens * model.layers * model.width * ACTIVATION_BYTES / 1e9
        factor = STEP_OVER_PASS[needed > card.memory_gb * 0.8]
        rest = run.model_copy(update={"finetune": tune.model_copy(update={"n_steps": 1})})
        return tune.n_steps * tune.batch_size * factor * a_pass / n + stage_seconds(
            stage, rest, images, model, machine(card, n)
        )
    return stage_seconds(stage, run, images, model, machine(card, n))


def card_plan(
    card: Card, n: int, models: Sequence[tuple[RunConfig, Footprint]], stages: Sequence[float | None]
) -> CardPlan:
    """The plan of a study.

    Args:
        models: run and footprint of each model and data source.
        stages: seconds of each remaining stage (`card_seconds`); None if unknown.
    """
    timed = [seconds for seconds in stages if seconds is not None]
    total = START_SECONDS * bool(timed) + sum(timed) if len(timed) == len(stages) and models else None
    return CardPlan(card.name, n, card is MEASURED, [card_rate(run, model, card) for run, model in models], total)
