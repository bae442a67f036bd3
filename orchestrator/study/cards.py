"""What a study costs on a GPU that is not here: images/s, hours and memory, from rates measured on one H200.

Measured there (26 November 2026, 28 blocks of width 3,584, 729 visual tokens, bfloat16): operations a second of whole
passes, exact spectra, a LoRA step over a pass. Metrics of the present code were not measured: theirs is the counted
work (`python -m benchmarks.gpu --counted`) times what measured metrics took over counted ones before. Another card's
passes are scaled by its dense bfloat16 rate, its metrics by its memory bandwidth, its exact spectra by its float32
rate, all by data sheet. What reading and preparing images costs processors is taken to overlap, as it does where eight
cores stand by a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.config import RunConfig, StageName
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.models.planning import Footprint
from orchestrator.study.estimate import START_SECONDS, Machine, stage_seconds

PASS_FLOPS = 520e12
"""Operations/s of a whole forward pass: 8 images in 161 ms."""
ELEMENT_SECONDS = {"norms": 6.5e-12, "gram": 51e-12, "estimate": 73e-12}
"""Seconds an element of hidden state (tokens x width x tap points). Of 612 million elements (232 sets of 736 x 3,584)
counted 3.8, 23.6 and 20.3 ms; measured over counted was 1.05, 1.31 and 2.2. `gram` is the default set, norms included,
`estimate` that of one variant beside it."""
SPECTRUM_SECONDS = 0.90e-3 / 736**3
"""Seconds of one exact spectrum over the cube of its side, as measured with its float32 Gram matrix;
`capture.spectrum: exact` has four a tap point."""
STEP_OVER_PASS = {False: 2.74, True: 3.99}
"""A LoRA step over a forward pass of the same tokens, without and with recomputed activations."""
ACTIVATION_BYTES = 79
"""Of a training step that recomputes nothing, a token, block and unit of width: 48 GB for 6,048 tokens."""
CORES, MEMORY_GB = 16, 128
"""What is taken to stand beside each card."""


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet: memory, bytes/s, dense bfloat16 and float32 operations/s."""

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
    """Share of the time that the bare forward pass takes."""
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
    """Of all that is left to do; None where a model or a stage is not known here."""

    @property
    def gpu_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.n / 3600


def find_card(name: str) -> Card:
    """The card of a name.

    Raises:
        ConfigError: none has it.
    """
    key = name.lower().replace(" ", "").replace("-", "")
    if key not in CARDS:
        raise ConfigError(f"no rates for GPU {name!r}; known are {', '.join(CARDS)}.{did_you_mean(key, CARDS)}")
    return CARDS[key]


def machine(card: Card, n: int) -> Machine:
    """A machine of `n` such cards."""
    flops = PASS_FLOPS * card.bfloat16 / MEASURED.bfloat16
    return Machine(CORES * n, float(MEMORY_GB * n), n, card.name, card.memory_gb, flops)


def image_seconds(run: RunConfig, found: Footprint, card: Card) -> tuple[float, float]:
    """Seconds of an image's forward pass and of its metrics on one card."""
    forward = found.tflop_per_image * 1e12 / machine(card, 1).flops_per_second
    points = found.layers + 2
    elements = found.vision_tokens * found.width * points
    spectrum = run.capture.spectrum
    classes = ["gram"] + ["estimate"] * 4 * (spectrum == "estimate")
    metrics = elements * sum(ELEMENT_SECONDS[name] for name in classes) * MEASURED.bandwidth / card.bandwidth
    if spectrum == "exact":
        side = min(found.vision_tokens, found.width)
        metrics += 4 * points * SPECTRUM_SECONDS * side**3 * MEASURED.float32 / card.float32
    return forward, metrics


def card_rate(run: RunConfig, found: Footprint, card: Card) -> CardRate:
    """Capture's rate and memory on one card."""
    forward, metrics = image_seconds(run, found, card)
    # the buffer of kept states in bfloat16, their differences in float32 and these in two halves
    kept = run.how.batch_size * found.vision_tokens * found.width * (found.layers + 2) * 10 / 1e9
    memory = found.memory_gb + kept
    return CardRate(
        run.model.label,
        round(1 / (forward + metrics), 2),
        round(forward / (forward + metrics), 3),
        round(memory, 1),
        memory <= card.memory_gb * 0.95,
    )


def card_seconds(stage: StageName, run: RunConfig, images: int, found: Footprint, card: Card, n: int) -> float:
    """Seconds of one stage on `n` cards."""
    if stage == "capture":
        return images * sum(image_seconds(run, found, card)) / n
    if stage == "finetune":
        tune = run.finetune
        a_pass = found.tflop_per_image * 1e12 / machine(card, 1).flops_per_second
        tokens = tune.batch_size // tune.accumulate * (found.vision_tokens + 64)
        needed = found.memory_gb + tokens * found.layers * found.width * ACTIVATION_BYTES / 1e9
        factor = STEP_OVER_PASS[needed > card.memory_gb * 0.8]
        rest = run.model_copy(update={"finetune": tune.model_copy(update={"n_steps": 1})})
        return tune.n_steps * tune.batch_size * factor * a_pass / n + stage_seconds(
            stage, rest, images, found, machine(card, n)
        )
    return stage_seconds(stage, run, images, found, machine(card, n))


def card_plan(
    card: Card, n: int, models: Sequence[tuple[RunConfig, Footprint]], stages: Sequence[float | None]
) -> CardPlan:
    """The plan of a study.

    Args:
        models: a run and its footprint, of each model and data source.
        stages: seconds of each stage that is left to do (`card_seconds`); None where it is not known.
    """
    known = [seconds for seconds in stages if seconds is not None]
    total = START_SECONDS * bool(known) + sum(known) if len(known) == len(stages) and models else None
    return CardPlan(card.name, n, card is MEASURED, [card_rate(run, found, card) for run, found in models], total)
