"""The complexity-ratio mixture: a fixed number of examples of which exactly a share r is of the high tier.

Each slot of the mixture has a place in the order, a family, one high-tier and one low-tier example of that family, all
fixed by the seed and the share of novel families. Slot i of n is high where i < r * n. So the high examples at a
smaller r are a subset of those at a larger one, the low examples the other way round, and two mixtures of one seed
differ in nothing but the complexity of the scenes in the slots between their ratios.

Novelty is a second axis: slot i is of a novel family where the i-th term of a low-discrepancy sequence lies below the
share of them. Both tiers therefore hold the same share of novel families, and both classes their families in turn.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.config import FinetuneConfig, ScenesConfig, TaskConfig
from orchestrator.data.attributes import scene_attributes
from orchestrator.data.builders import SceneView, caption_question
from orchestrator.data.coco import CocoSource
from orchestrator.data.coco_questions import CocoQuestions
from orchestrator.data.examples import make_example
from orchestrator.data.file_questions import NO_TIER, FileQuestions
from orchestrator.data.files.source import QuestionSource
from orchestrator.data.questions import Question
from orchestrator.data.render import render
from orchestrator.data.sample import Source
from orchestrator.data.scenes import Scene
from orchestrator.data.templates import LARGEST_NUMBER
from orchestrator.errors import ConfigError


@dataclass(frozen=True)
class Example:
    """A question with its image: a scene, one of a source, several of a question file's row, or none (text only)."""

    question: Question
    scene: Scene | None = None
    image_index: int | None = None
    source: Source | None = None

    def image(self) -> np.ndarray | list[np.ndarray] | None:
        """Draw or load the image as RGB uint8 (height, width, 3), or several; None for a text-only example."""
        if self.scene is not None:
            return render(self.scene)
        if isinstance(self.source, QuestionSource) and self.image_index is not None:
            return self.source.shown(self.image_index)
        if self.source is not None and self.image_index is not None:
            return self.source.load(self.image_index).image
        return None


class ExampleMaker:
    """Makes example number `index` of a family and tier for a task, on scenes or on COCO.

    Args:
        source: the photographs, where the task asks about any.
        among: whether a photograph of this id, or a cluster of question files, may be asked about; any when absent.
        with_image: leave out rows of question files that have no image.
    """

    def __init__(
        self,
        task: TaskConfig,
        source: CocoSource | QuestionSource | None = None,
        among: Callable[[str], bool] | None = None,
        *,
        with_image: bool = False,
    ) -> None:
        self.task = task
        self.files: FileQuestions | None = None
        if isinstance(source, QuestionSource):
            self.files = FileQuestions(source, task.complexity, among, with_image=with_image)
        self.coco: CocoQuestions | None = None
        if task.source == "coco":
            if not isinstance(source, CocoSource):
                raise ConfigError("finetune.task.source: coco needs data.source: coco")
            self.coco = CocoQuestions(source, among, task.n_objects_low, task.n_objects_high)
        self.low = self._scenes(*task.n_objects_low)
        self.high = self._scenes(*task.n_objects_high)
        self.largest = max(LARGEST_NUMBER, task.n_objects_high[1])

    def _scenes(self, low: int, high: int) -> ScenesConfig:
        return ScenesConfig(
            width=self.task.width,
            height=self.task.height,
            n_objects=(low, high),
            n_objects_spacing="uniform",
            size=self.task.size,
        )

    def wanted(self, low: Sequence[str], high: Sequence[str]) -> list[tuple[str, str]]:
        """(tier, family) of every question asked; a question file without tiers has all families in the tier `all`."""
        if self.files is not None and not self.files.has_tiers:
            return [(NO_TIER, family) for family in dict.fromkeys([*low, *high])]
        return [("low", family) for family in low] + [("high", family) for family in high]

    def at_most(self, family: str, tier: str, seed: int, n: int) -> int:
        """How many of n different questions there are: a question file has only so many, and none is asked twice."""
        return n if self.files is None else self.files.at_most(family, tier, seed, n)

    def make(self, family: str, tier: str, seed: int, index: int) -> Example:
        """Make one example; ConfigError where the task cannot have it."""
        if self.coco is not None:
            image, question = self.coco.make(family, tier, seed, index)
            return Example(question, image_index=image, source=self.coco.source)
        if self.files is not None:
            image, question = self.files.make(family, tier, seed, index)
            return Example(question, image_index=image, source=self.files.source)
        scenes = self.low if tier == "low" else self.high
        room = self.task.n_objects_low[1]
        scene, question = make_example(scenes, family, tier, seed, index, room=room, largest=self.largest)
        return Example(question, scene=scene)

    def rejected(self) -> list[tuple[int, str, str]]:
        """Place, id and fault of each row of the question files that is bad, or came up and could not be asked."""
        return [] if self.files is None else self.files.rejected()

    def caption(self, seed: int, index: int) -> Example:
        """Make a scene of the low tier with its caption."""
        scene, question = make_example(self.low, "caption", None, seed, index)
        return Example(question, scene=scene)

    def text_only(self, seed: int, index: int) -> Example:
        """Make a low-tier colour question about a scene given in words instead of an image."""
        scene, question = make_example(self.low, "colour", "low", seed, index)
        words = caption_question(SceneView(scene), np.random.default_rng(0))
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


def slot_families(config: FinetuneConfig, n: int) -> list[str]:
    """Family of each of n slots: novel ones where `novelty_ratio` says so, each class in turn."""
    task, share = config.task, config.novelty_ratio
    # The additive recurrence of the golden ratio: every prefix holds the share to within a few slots.
    place = (np.arange(n) * ((5**0.5 - 1) / 2) + 0.5) % 1.0
    novel = place < share
    turn = np.where(novel, np.cumsum(novel), np.cumsum(~novel)) - 1
    return [
        (task.novel_families if is_novel else task.families)[
            i % len(task.novel_families if is_novel else task.families)
        ]
        for is_novel, i in zip(novel.tolist(), turn.tolist(), strict=True)
    ]


def make_mixture(
    config: FinetuneConfig,
    ratio: float,
    seed: int,
    source: CocoSource | QuestionSource | None = None,
    rejected: list[tuple[int, str, str]] | None = None,
) -> list[Example]:
    """Make the `config.n_examples` examples of a mixture, in training order.

    Shares of captions and text-only examples take fixed slots, the same at every ratio; the ratio holds exactly (to
    rounding) among the others. Depends on (config.task, n_examples, novelty_ratio, ratio, seed) and the source alone.
    Of photographs without an `eval_split`, those `is_held_out` names are left out. `ExampleMaker.rejected` is appended
    to `rejected`.

    Raises ConfigError for a ratio outside [0, 1], shares that sum to more than one, no families, or a family that the
    task's scenes are too small for.
    """
    task, n = config.task, config.n_examples
    if not 0.0 <= ratio <= 1.0:
        raise ConfigError(f"finetune.complexity_ratio: expected 0 to 1, found {ratio}")
    if task.text_only_share + task.caption_share > 1.0:
        raise ConfigError("finetune.task: text_only_share and caption_share sum to more than one")
    if not task.families:
        raise ConfigError("finetune.task.families: expected at least one family, found none")
    if config.novelty_ratio and not task.novel_families:
        raise ConfigError(f"finetune.novelty_ratio: {config.novelty_ratio} needs finetune.task.novel_families")
    maker = ExampleMaker(task, source, None if task.eval_split else lambda image_id: not is_held_out(image_id))
    order = np.random.default_rng([seed, 0x517]).permutation(n).tolist()
    n_text, n_caption = n_high(task.text_only_share, n), int(task.caption_share * n)
    mixed = n - n_text - n_caption
    high, families = n_high(ratio, mixed), slot_families(config, mixed)
    examples = []
    for slot in order:
        if slot >= mixed + n_caption:
            examples.append(maker.text_only(seed, slot))
        elif slot >= mixed:
            examples.append(maker.caption(seed, slot))
        else:  # slot numbers are shuffled above, so families in turn by number share every ratio evenly
            examples.append(maker.make(families[slot], "high" if slot < high else "low", seed, slot))
    if rejected is not None:
        rejected += maker.rejected()
    return examples


def check_mixture(
    task: TaskConfig, source: CocoSource | QuestionSource | None, held_out: CocoSource | QuestionSource | None
) -> None:
    """Refuse a task on question files whose rows lack a family or tier, among those trained on or those held out.

    Raises:
        ConfigError: naming what there is.
    """
    families = task.families + task.novel_families
    trained = ExampleMaker(task, source, None if task.eval_split else lambda cluster: not is_held_out(cluster))
    judged = ExampleMaker(task, held_out, None if task.eval_split else is_held_out)
    for maker in (trained, judged):
        for tier in ("low", "high"):
            for family in families:
                maker.at_most(family, tier, 0, 1)


def tier_facts(examples: Sequence[Example]) -> dict[str, float]:
    """What differs between the tiers beside the ratio, as columns `questions/TIER/FACT` of table `trials`.

    Means of `n_objects` (where known), `coverage` and `size_mean` (scenes alone), `words` of the question and
    `answer_words`; and `answer_entropy`, the mean over families of the entropy of right answers, bits.
    """
    facts: dict[str, float] = {}
    for tier in sorted({e.question.tier for e in examples if e.question.tier}):
        inside = [e for e in examples if e.question.tier == tier]
        values: dict[str, list[float]] = {
            "n_objects": [n for e in inside if (n := e.question.detail.get("n_objects")) is not None],
            "words": [len(e.question.text.split()) for e in inside],
            "answer_words": [len(e.question.answer.split()) for e in inside],
            "answer_entropy": [
                _entropy([e.question.answer for e in inside if e.question.family == family])
                for family in sorted({e.question.family for e in inside})
            ],
        }
        scenes = [scene_attributes(e.scene) for e in inside if e.scene is not None]
        for fact in ("coverage", "size_mean") if scenes else ():
            values[fact] = [attributes[fact] for attributes in scenes]
        facts |= {f"questions/{tier}/{fact}": float(np.mean(numbers)) for fact, numbers in values.items() if numbers}
    return facts


def _entropy(answers: Sequence[str]) -> float:
    shares = np.array(list(Counter(answers).values())) / len(answers)
    return float(-(shares * np.log2(shares)).sum())


def make_evaluation(
    config: FinetuneConfig,
    source: CocoSource | QuestionSource | None = None,
    n_per_family: int | None = None,
    rejected: list[tuple[int, str, str]] | None = None,
) -> list[Example]:
    """Make the held-out questions: `n_eval_per_family` of each family, novel or not, and tier, from `eval_seed`.

    They are about scenes and photographs that no mixture holds: on COCO those of `eval_split`, else `is_held_out`. Of
    question files there may be fewer: every row is asked once at most. `ExampleMaker.rejected` is appended to
    `rejected`.
    """
    task, n = config.task, n_per_family or config.n_eval_per_family
    maker = ExampleMaker(task, source, None if task.eval_split else is_held_out)
    requested = [(tier, family) for tier in ("low", "high") for family in task.families + task.novel_families]
    evaluation = [
        maker.make(family, tier, config.eval_seed, index)
        for tier, family in requested
        for index in range(maker.at_most(family, tier, config.eval_seed, n))
    ]
    if rejected is not None:
        rejected += maker.rejected()
    return evaluation
