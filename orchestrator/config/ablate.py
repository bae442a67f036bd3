"""Settings of the causal checks, and the policies that come of them."""

from __future__ import annotations

from bisect import bisect_right
from math import isnan
from typing import Literal

from pydantic import Field, model_validator

from orchestrator.config.finetune import check_tiers
from orchestrator.config.section import Count, Float, Int, PositiveInt, Section, Share

RouteName = Literal[
    "image->question",
    "image->last",
    "question->last",
    "object->question",
    "object->last",
    "background->question",
    "background->last",
]

PlaceName = Literal["image", "changed", "object", "background", "question", "last"]
"""Whose states are replaced by those of another scene."""
CheckName = Literal[
    "deletion", "inside", "rivals", "knockout", "routes", "replacing", "lens", "attention", "patching", "policy", "link"
]  # fmt: skip


class AblateConfig(Section):
    """Which causal checks are run, on which questions."""

    checks: tuple[CheckName, ...] = ("deletion", "knockout", "patching")
    low_families: tuple[str, ...] = ("colour", "shape", "existence", "count")
    high_families: tuple[str, ...] = ("count", "relation")
    n_objects_low: tuple[Int, Int] = (1, 4)
    """Smallest and largest number of objects of low-tier scenes or photographs, inclusive."""
    n_objects_high: tuple[Int, Int] = (6, 12)
    """Smallest and largest number of objects of high-tier scenes or photographs, inclusive."""
    source: Literal["scenes", "coco", "questions"] = "scenes"
    """Images the questions are asked of; `coco` and `questions` use the run's `data` section. Patching always uses
    scenes."""
    complexity: str | None = None
    """Numeric column of question files that gives the tier, as `finetune.task.complexity`. Without it, and without a
    tier in the rows, all rows are of one tier, `all`."""
    n_per_family: PositiveInt = 100
    """Questions of each family and tier; of question files no more than there are."""
    deleted_shares: tuple[Share, ...] = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
    """Shares of visual tokens deleted; 0 is always among them, 1 leaves the text alone."""
    methods: tuple[str, ...] = ("random", "norm", "downsample")
    """How the deleted tokens are chosen before the decoder (docs/causal.md lists the ways; packages add to them by
    entry point); `downsample` shrinks the image to the same token budget instead."""
    selector_settings: dict[str, dict[str, Float]] = Field(default_factory=dict)
    """Settings of those ways by name, where they differ from the defaults: `{leverage: {rank: 10}}`."""
    seeds: tuple[Count, ...] = (0, 1, 2)
    """Seeds of random deletion."""
    inside_layers: tuple[Int, ...] | None = None
    """Numbers of decoder layers after which tokens are deleted in the `inside` check; every second when absent."""
    inside_methods: tuple[str, ...] = ("random", "fastv")
    """How the tokens deleted inside the decoder are chosen; attention is that of the last layer before."""
    rivals: tuple[str, ...] = ("random", "norm", "divprune", "fastv", "fastervlm", "tome", "downsample")
    """Ways to choose tokens that the `rivals` check compares at equal average tokens, each at the depth of its paper;
    `random` and `downsample` are controls, without which columns that need them stay empty."""
    budgets: tuple[Share, ...] = (0.5, 0.25, 0.125)
    """Average share of visual tokens, over the layers that read them, at which rivals are compared."""
    window: PositiveInt = 2
    """Width of a knock-out window, in layers."""
    routes: tuple[RouteName, ...] = ("image->question", "image->last", "question->last")
    """What is blocked in the `routes` check, from what is read to what reads; parts of the image (`object`,
    `background`) need scenes or COCO, whose objects' boxes are known."""
    replaced: tuple[Literal["zero", "mean", "noise"], ...] = ("zero", "mean", "noise")
    """What takes the place of all visual states at the input of a layer in the `replacing` check: zeros, the mean state
    of all images asked about, or draws from a normal distribution of their mean and deviation in each dimension."""
    replaced_places: tuple[Literal["image", "object", "background"], ...] = ("image",)
    """Which visual tokens are replaced: all, those that show an object, or the others (by boxes: scenes or COCO)."""
    patched: tuple[Literal["colour", "shape", "count", "relation"], ...] = ("colour", "shape", "count", "relation")
    """Attributes in which the scenes of a patched pair differ."""
    patched_places: tuple[PlaceName, ...] = ("image",)
    """Whose states are patched: all visual tokens; those that show what differs between the two scenes (`changed`), any
    object, or none (`background`); the question's tokens; the prompt's last token."""
    attention_layers: tuple[Int, ...] | None = None
    """Decoder layers whose attention to the image the `attention` check reads; all that read the image when absent."""
    attention_maps: Count = 6
    """Questions whose attention is kept token by token, to be laid on their pictures."""
    lens_tokens: PositiveInt = 8
    """Tokens of a question, of its objects and of its background that the `lens` check reads at most, evenly spread."""
    max_accuracy_loss: Share = 0.05
    """Loss of accuracy a policy may cost. A rule is one whose interval excludes a larger loss on the choosing half: of
    n independent questions without a difference that is 3.84 / (n + 3.84), 0.05 from 73 questions on."""
    instruction: str = ""
    """Words put after every question, as "Answer in one word."; for models that would answer in sentences."""
    seed: Count = 2_000_003
    """Seed of the questions' scenes."""

    @model_validator(mode="after")
    def _possible(self) -> AblateConfig:
        if self.inside_layers is not None and min(self.inside_layers, default=1) < 1:
            raise ValueError("inside_layers: expected 1 or more (0 is the `deletion` check), found 0 or less")
        if {"policy", "link"} & set(self.checks) and not set(self.methods) - {"downsample"}:
            raise ValueError(
                "methods: a policy needs a method that deletes tokens; downsample is what it is held against"
            )
        parts: dict[CheckName, list[str]] = {
            "routes": [name for name in self.routes if name.startswith(("object", "background"))],
            "replacing": [name for name in self.replaced_places if name != "image"],
        }
        keys: dict[CheckName, str] = {"routes": "routes", "replacing": "replaced_places"}
        for check, names in parts.items():
            if check in self.checks and names and self.source == "questions":
                raise ValueError(f"{keys[check]}: {names[0]} needs ablate.source: scenes or coco, found {self.source}")
        check_tiers(self.n_objects_low, self.n_objects_high)
        if "patching" in self.checks and "count" in self.patched and self.n_objects_low[1] < 2:
            raise ValueError("n_objects_low: patching of counts takes an object away, so 2 or more are needed, found 1")
        return self


class PolicyRule(Section):
    """Delete one share of the visual tokens, whatever the image."""

    tier: str
    """Tier of the questions."""
    family: str
    """Family of the questions; `all` for those without a rule of their own."""
    method: str
    """How tokens are chosen (`ablate.methods`)."""
    layer: Count
    """Delete after this many decoder layers; 0 for before the decoder."""
    deleted_share: Share
    """Share of visual tokens deleted."""


class AdaptiveRule(Section):
    """Delete a share of the visual tokens that follows a compression metric of the image's projected tokens."""

    tier: str
    """Tier of the questions."""
    family: str
    """Family of the questions."""
    metric: str
    """Compression metric at the `projector` tap, known before the decoder runs."""
    method: str
    """How tokens are chosen."""
    edges: tuple[Float, ...]
    """Ascending values of the metric that part the bins."""
    deleted_shares: tuple[Share, ...]
    """Share deleted in each bin, one more than edges."""

    @model_validator(mode="after")
    def _bins(self) -> AdaptiveRule:
        if len(self.deleted_shares) != len(self.edges) + 1 or list(self.edges) != sorted(self.edges):
            raise ValueError(f"expected ascending edges and one share more, found {self.edges}, {self.deleted_shares}")
        return self

    def share_at(self, value: float) -> float:
        """Share deleted where the metric is `value`; 0 where it is undefined (NaN)."""
        if isnan(value):
            return 0.0
        return self.deleted_shares[bisect_right(self.edges, value)]


class PolicyFile(Section):
    """`policy.yaml`: what an ablation chose, as `vtsweep evaluate --policy` applies it."""

    policy_version: Literal[1] = 1
    """Version of this format."""
    model: str
    """Model it was chosen on."""
    checkpoint: str = "base"
    """`base`, or the digest of the trial whose adapter the model carried."""
    weights: str = ""
    """Content digest of its weights, or `REPOSITORY@COMMIT`, and of its adapter; empty in files that do not say."""
    model_type: str = ""
    """Type of that model, as transformers calls it; empty in files that do not say."""
    n_layers: Count = 0
    """Its decoder layers; 0 in files that do not say."""
    hidden_size: Count = 0
    """Its width; 0 in files that do not say."""
    selector_settings: dict[str, dict[str, Float]] = Field(default_factory=dict)
    """Settings of the methods, as `ablate.selector_settings`."""
    max_accuracy_loss: Share
    """Loss of accuracy allowed when it was chosen."""
    fixed: tuple[PolicyRule, ...] = ()
    """One share for each tier, and for each of its families."""
    adaptive: tuple[AdaptiveRule, ...] = ()
    """Shares that follow the image, one rule a family."""
