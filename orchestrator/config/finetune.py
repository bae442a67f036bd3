"""Settings of one fine-tuning trial."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.config.section import Count, Int, PositiveFloat, PositiveInt, Section, Share


class GroupConfig(Section):
    """LoRA settings of one part of the model."""

    rank: Count = 16
    """LoRA rank; 0 leaves the part frozen."""
    learning_rate: PositiveFloat
    """Peak learning rate."""


def check_tiers(low: tuple[int, int], high: tuple[int, int]) -> None:
    """Raise ValueError unless both ranges of object numbers are valid and do not overlap."""
    for name, (smaller, larger) in (("n_objects_low", low), ("n_objects_high", high)):
        if smaller > larger:
            raise ValueError(f"{name}: the smaller value comes first, found [{smaller}, {larger}]")
    if low[0] < 1:
        raise ValueError(f"n_objects_low: expected 1 or more, found {list(low)}")
    if low[1] >= high[0]:
        raise ValueError(
            f"n_objects_high: expected more objects than in n_objects_low {list(low)}, found {list(high)}: a scene "
            "has one tier"
        )


class TaskConfig(Section):
    """Questions of the fine-tuning mixture and of the evaluation."""

    source: Literal["scenes", "coco", "questions"] = "scenes"
    """Source of the images; `coco` and `questions` use the run's `data` section for the folder."""
    complexity: str | None = None
    """Numeric column of question files that gives the tier: rows in its lower third are low, in its upper third high.
    The rows' own `tier` when absent."""
    eval_split: str | None = None
    """COCO split of the held-out questions. Default: half of `data.split`'s images, by a hash of their ids, is held out
    and never trained on."""
    families: tuple[str, ...] = (
        "colour",
        "shape",
        "existence",
        "count",
        "count_by_attribute",
        "comparison",
        "relation",
        "point",
    )
    """Question families, the same in both tiers. The shipped reference models know all eight of low-tier scenes."""
    novel_families: tuple[str, ...] = ()
    """Families that enter the mixture only through `finetune.novelty_ratio`, equally in both tiers. They are always
    among the held-out questions. They must not be in `families`."""
    n_objects_low: tuple[Int, Int] = (1, 4)
    """Smallest and largest number of objects of low-tier scenes or photographs, inclusive."""
    n_objects_high: tuple[Int, Int] = (6, 12)
    """Smallest and largest number of objects of high-tier scenes or photographs, inclusive. The tier is the complexity
    of the image only: families, wordings, choices and sizes of objects are the same in both."""
    size: tuple[PositiveFloat, PositiveFloat] = (0.08, 0.22)
    """Object diameter as a fraction of the shorter side, in both tiers; crowded scenes shrink it so that all objects
    fit, which at 336 px begins at about 20 objects."""
    width: PositiveInt = 336
    """Canvas width, px."""
    height: PositiveInt = 336
    """Canvas height, px."""
    text_only_share: Share = 0.0
    """Share of examples without an image, in addition to the mixture."""
    caption_share: Share = 0.0
    """Share of captions, in addition to the mixture."""

    @model_validator(mode="after")
    def _tiers(self) -> TaskConfig:
        check_tiers(self.n_objects_low, self.n_objects_high)
        if self.size[0] > self.size[1]:
            raise ValueError(f"size: the smaller value comes first, found {list(self.size)}")
        if repeated := set(self.families) & set(self.novel_families):
            raise ValueError(
                f"novel_families: {sorted(repeated)} are also in families; a family must be in one of them"
            )
        return self


class FinetuneConfig(Section):
    """One trial: LoRA fine-tuning on a mixture with a given ratio of high-complexity questions."""

    complexity_ratio: Share = 0.5
    """Share r of high-tier examples in the mixture. Number, order, steps, families and the other examples do not
    depend on it. Remaining differences between the tiers are in the trial's row: length of text and answer, covered
    area, answers (columns `examples/...`)."""
    novelty_ratio: Share = 0.0
    """Share of examples of `task.novel_families` in the mixture, the same in both tiers: with `complexity_ratio` a
    2 x 2 of complexity and novelty. 0 without novel families."""
    seed: Count = 0
    """Seed of the mixture, its order and LoRA's initial weights."""
    n_examples: PositiveInt = 2048
    """Size of the mixture."""
    n_steps: PositiveInt = 120
    """Optimiser steps (the mixture is repeated or cut as needed)."""
    batch_size: PositiveInt = 32
    """Examples per optimiser step."""
    accumulate: PositiveInt = 1
    """Micro-batches per optimiser step; `batch_size` is split over them."""
    method: Literal["lora", "full"] = "lora"
    """LoRA adapters or all weights."""
    language: GroupConfig = GroupConfig(rank=16, learning_rate=1e-3)
    projector: GroupConfig = GroupConfig(rank=16, learning_rate=1e-3)
    vision: GroupConfig = GroupConfig(rank=0, learning_rate=1e-4)
    alpha_over_rank: PositiveFloat = 2.0
    """LoRA alpha divided by rank."""
    dropout: Annotated[float, Field(strict=True, ge=0.0, lt=1.0)] = 0.0
    """LoRA dropout. Above 0 every example has a separate forward pass, so that the dropout mask depends only on seed,
    step and example; training is slower if short examples could share a pass."""
    warmup_share: Share = 0.05
    """Share of steps with linear warm-up; cosine decay after it."""
    weight_decay: Annotated[float, Field(strict=True, ge=0.0)] = 0.0
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping norm."""
    task: TaskConfig = TaskConfig()
    n_eval_per_family: PositiveInt = 100
    """Held-out questions per family and tier."""
    eval_seed: Count = 1_000_003
    """Seed of held-out scenes; must differ from `seed`."""
    answer_by: Literal["score", "generate"] = "score"
    """Evaluation of a question with a closed set of answers, numbers included: `score`, the most probable answer;
    `generate`, the generated text. Both are stored. Locations are always generated."""
    instruction: str = ""
    """Text appended to every question, such as "Answer in one word."."""
    n_capture_images: PositiveInt = 64
    """Images of the run's `data` on which compression is measured before and after."""
    n_capture_questions: Count = 32
    """Number of held-out questions, balanced over tiers, on whose images and prompts compression is also measured
    (columns `asked/TIER/...`); 0 for none."""
    n_drift_tokens: PositiveInt = 64
    """Maximum number of tokens per image and group whose states are compared with the base model's."""
    primary: tuple[str, ...] = ("drift/vision/late", "delta/vision/stable_rank_centred/middle", "accuracy/high")
    """Primary outcomes (columns of table `trials`): named before the sweep runs, and tested as one family. All other
    outcomes are exploratory."""
    search_trials: Count = 0
    """Samples of the study's `search` section per point; 0 for none. They are selected on the held-out questions, so
    that the best sample's accuracy is biased upwards: confirm it with another `eval_seed`."""
    search_algorithm: Literal["random", "optuna"] = "random"
    """How samples are drawn; `optuna` (an extra) adapts to the mean accuracy of earlier samples of the point."""
    prune: bool = False
    """Stop weak samples of a search early (ASHA). Samples are compared within their point only, and the last
    one of a point is never stopped."""

    @model_validator(mode="after")
    def _divisible(self) -> FinetuneConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if self.eval_seed == self.seed:
            raise ValueError(f"eval_seed {self.eval_seed} equals seed: held-out scenes would be training scenes")
        return self
