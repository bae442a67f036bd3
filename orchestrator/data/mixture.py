"""The complexity-ratio mixture: a fixed number of examples of which exactly a share r is of the high tier.

Each slot of the mixture has a place in the order, a rank, one high-tier and one low-tier example, all fixed by the seed
alone. Slot i is high where rank_i < r * n. So the high examples at a smaller r are a subset of those at a larger one,
the low examples the other way round, and two mixtures of one seed differ in nothing but the slots between their ratios.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.config import FinetuneConfig, ScenesConfig, TaskConfig
from orchestrator.data.coco import CocoSource
from orchestrator.data.coco_questions import CocoQuestions
from orchestrator.data.examples import make_example
from orchestrator.data.questions import CROWDED, Question, View, caption_question
from orchestrator.data.render import render
from orchestrator.data.scenes import Scene
from orchestrator.errors import ConfigError


@dataclass(frozen=True)
class Example:
    """A question with its image: a scene, an image of a COCO source, or none (text only)."""

    question: Question
    scene: Scene | None = None
    image_index: int | None = None
    source: CocoSource | None = None

    def image(self) -> np.ndarray | None:
        """Draw or load the image as RGB uint8 (height, width, 3); None for a text-only example."""
        if self.scene is not None:
            return render(self.scene)
        if self.source is not None and self.image_index is not None:
            return self.source.load(self.image_index).image
        return None


class ExampleMaker:
    """Makes example number `index` of a family and tier for a task, on scenes or on COCO.

    Args:
        source: the photographs, where the task asks about any.
        among: whether a photograph of this id may be asked about; any when absent.
    """

    def __init__(
        self, task: TaskConfig, source: CocoSource | None = None, among: Callable[[str], bool] | None = None
    ) -> None:
        self.task = task
        if task.source == "coco":
            if source is None:
                raise ConfigError("finetune.task.source: coco needs data.source: coco")
            self.coco: CocoQuestions | None = CocoQuestions(source, among)
        else:
            self.coco = None
        self.low = self._scenes(1, CROWDED)
        self.high = self._scenes(*task.n_objects_high)

    def _scenes(self, low: int, high: int) -> ScenesConfig:
        return ScenesConfig(
            width=self.task.width, height=self.task.height, n_objects=(low, high), n_objects_spacing="uniform"
        )

    def make(self, family: str, tier: str, seed: int, index: int) -> Example:
        """Make one example; ConfigError where the task cannot have it."""
        if self.coco is not None:
            image, question = self.coco.make(family, tier, seed, index)
            return Example(question, image_index=image, source=self.coco.source)
        scene, question = make_example(self.low if tier == "low" else self.high, family, tier, seed, index)
        return Example(question, scene=scene)

    def caption(self, seed: int, index: int) -> Example:
        """Make a scene of the low tier with its caption."""
        scene, question = make_example(self.low, "caption", None, seed, index)
        return Example(question, scene=scene)

    def text_only(self, seed: int, index: int) -> Example:
        """Make a low-tier colour question about a scene given in words instead of an image."""
        scene, question = make_example(self.low, "colour", "low", seed, index)
        words = caption_question(View(scene), np.random.default_rng(0))
        assert words is not None
        return Example(
            replace(
                question,
                question_id=f"text_only-{seed}-{index:07d}",
                family="text_only",
                tier=None,
                text=f"{words[2]} . {question.text}",
            )
        )


def is_held_out(image_id: str) -> bool:
    """Whether a photograph is kept from training where no other split is: half of them, by a hash of the id."""
    return hashlib.sha256(image_id.encode()).digest()[0] % 2 == 1


def n_high(ratio: float, n: int) -> int:
    """Number of high-tier examples among n: r * n, rounded half up."""
    return int(np.floor(ratio * n + 0.5))


def make_mixture(config: FinetuneConfig, ratio: float, seed: int, source: CocoSource | None = None) -> list[Example]:
    """Make the `config.n_examples` examples of a mixture, in training order.

    Shares of captions and text-only examples take fixed slots, the same at every ratio; the ratio holds exactly (to
    rounding) among the others. Depends on (config.task, n_examples, ratio, seed) and the source alone. Of photographs
    without an `eval_split`, those `is_held_out` names are left out.

    Raises ConfigError for a ratio outside [0, 1], shares that sum to more than one, no families, or a family that does
    not have its tier.
    """
    task, n = config.task, config.n_examples
    if not 0.0 <= ratio <= 1.0:
        raise ConfigError(f"finetune.complexity_ratio: expected 0 to 1, found {ratio}")
    if task.text_only_share + task.caption_share > 1.0:
        raise ConfigError("finetune.task: text_only_share and caption_share sum to more than one")
    for key in ("low_families", "high_families"):
        if not getattr(task, key):
            raise ConfigError(f"finetune.task.{key}: expected at least one family, found none")
    maker = ExampleMaker(task, source, None if task.eval_split else lambda image_id: not is_held_out(image_id))
    order = np.random.default_rng([seed, 0x517]).permutation(n).tolist()
    n_text, n_caption = n_high(task.text_only_share, n), int(task.caption_share * n)
    mixed = n - n_text - n_caption
    high = n_high(ratio, mixed)
    examples = []
    for slot in order:
        if slot >= mixed + n_caption:
            examples.append(maker.text_only(seed, slot))
        elif slot >= mixed:
            examples.append(maker.caption(seed, slot))
        elif slot < high:
            # Families in turn by rank, so that they share every ratio evenly; ranks are slot numbers, shuffled above.
            examples.append(maker.make(task.high_families[slot % len(task.high_families)], "high", seed, slot))
        else:
            back = mixed - 1 - slot
            examples.append(maker.make(task.low_families[back % len(task.low_families)], "low", seed, slot))
    return examples


def make_evaluation(
    config: FinetuneConfig, source: CocoSource | None = None, n_per_family: int | None = None
) -> list[Example]:
    """Make the held-out questions: `n_eval_per_family` of each family and tier of the task, from `eval_seed`.

    They are about scenes and photographs that no mixture holds: on COCO those of `eval_split`, else `is_held_out`.
    """
    task, n = config.task, n_per_family or config.n_eval_per_family
    maker = ExampleMaker(task, source, None if task.eval_split else is_held_out)
    wanted = [("low", f) for f in task.low_families] + [("high", f) for f in task.high_families]
    return [maker.make(family, tier, config.eval_seed, index) for tier, family in wanted for index in range(n)]
