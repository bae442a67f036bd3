"""Settings of the causal checks, and of the deletion policies derived from them."""

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
"""Tokens whose states are patched with those of another scene."""
CheckName = Literal[
    "deletion", "inside", "rivals", "knockout", "routes", "replacing", "lens", "attention", "patching", "policy", "link"
]  # fmt: skip


class AblateConfig(Section):
    """Causal checks, and the questions they use."""

    checks: tuple[CheckName, ...] = ("deletion", "knockout", "patching")
    low_families: tuple[str, ...] = ("colour", "shape", "existence", "count")
    high_families: tuple[str, ...] = ("count", "relation")
    n_objects_low: tuple[Int, Int] = (1, 4)
    """Smallest and largest number of objects of low-tier scenes or photographs, inclusive."""
    n_objects_high: tuple[Int, Int] = (6, 12)
    """Smallest and largest number of objects of high-tier scenes or photographs, inclusive."""
    source: Literal["scenes", "coco", "questions"] = "scenes"
    """Source of the questions' images; `coco` and `questions` use the run's `data` section. Patching always uses
    scenes."""
    complexity: str | None = None
    """Numeric column of question files that gives the tier, as `finetune.task.complexity`. Without it, and without a
    tier in the rows, all rows have one tier, `all`."""
    n_per_family: PositiveInt = 100
    """Questions per family and tier; for question files at most as many as exist."""
    deleted_shares: tuple[Share, ...] = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
    """Shares of visual tokens deleted; 0 is always included; 1 deletes all visual tokens."""
    methods: tuple[str, ...] = ("random", "norm", "downsample")
    """Token selection methods before the decoder (docs/causal.md lists them; packages add more by entry point);
    `downsample` shrinks the image to the same token budget instead."""
    selector_settings: dict[str, dict[str, Float]] = Field(default_factory=dict)
    """Settings of the methods by name, if they differ from the defaults: `{leverage: {rank: 10}}`."""
    seeds: tuple[Count, ...] = (0, 1, 2)
    """Seeds of random deletion."""
    inside_layers: tuple[Int, ...] | None = None
    """Numbers of decoder layers after which tokens are deleted in the `inside` check; default: every second layer."""
    inside_methods: tuple[str, ...] = ("random", "fastv")
    """Token selection methods inside the decoder; attention is taken from the last layer before the deletion."""
    rivals: tuple[str, ...] = ("random", "norm", "divprune", "fastv", "fastervlm", "tome", "downsample")
    """Token selection methods that the `rivals` check compares at an equal average number of tokens, each at the depth
    of its paper; `random` and `downsample` are controls: without them, columns that need them are null."""
    budgets: tuple[Share, ...] = (0.5, 0.25, 0.125)
    """Average share of visual tokens, over the layers that read them, at which rivals are compared."""
    window: PositiveInt = 2
    """Width of a knock-out window, in layers."""
    routes: tuple[RouteName, ...] = ("image->question", "image->last", "question->last")
    """Attention edges that the `routes` check blocks, from key to query tokens; parts of the image (`object`,
    `background`) need scenes or COCO, which have object boxes."""
    replaced: tuple[Literal["zero", "mean", "noise"], ...] = ("zero", "mean", "noise")
    """Replacement of all visual states at the input of a layer in the `replacing` check: zeros, the mean state over
    the images, or samples of a normal distribution with their mean and standard deviation per dimension."""
    replaced_places: tuple[Literal["image", "object", "background"], ...] = ("image",)
    """Visual tokens that are replaced: all, those that show an object, or the others (needs boxes: scenes or COCO)."""
    patched: tuple[Literal["colour", "shape", "count", "relation"], ...] = ("colour", "shape", "count", "relation")
    """Attributes in which the two scenes of a patching pair differ."""
    patched_places: tuple[PlaceName, ...] = ("image",)
    """Tokens whose states are patched: all visual tokens; those that show the difference between the two scenes
    (`changed`), any object, or none (`background`); the question's tokens; the last token of the prompt."""
    attention_layers: tuple[Int, ...] | None = None
    """Decoder layers whose attention to the image the `attention` check reads; all that read the image when absent."""
    attention_maps: Count = 6
    """Questions whose attention is kept token by token, to be laid on their pictures."""
    lens_tokens: PositiveInt = 8
    """Tokens of a question, of its objects and of its background that the `lens` check reads at most, evenly spread."""
    max_accuracy_loss: Share = 0.05
    """Non-inferiority margin: accuracy loss that a policy may have. A rule's interval on the selection half must
    exclude a larger loss; with n independent questions and no difference its bound is 3.84 / (n + 3.84), 0.05 at n =
    73."""
    instruction: str = ""
    """Text appended to every question, such as "Answer in one word."; for models that answer in sentences."""
    seed: Count = 2_000_003
    """Seed of the questions' scenes."""

    @model_validator(mode="after")
    def _possible(self) -> AblateConfig:
        if self.inside_layers is not None and min(self.inside_layers, default=1) < 1:
            raise ValueError("inside_layers: expected 1 or more (0 is the `deletion` check), found 0 or less")
        if {"policy", "link"} & set(self.checks) and not set(self.methods) - {"downsample"}:
            raise ValueError("methods: a policy needs a method that deletes tokens; downsample is only its control")
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
            raise ValueError("n_objects_low: patching of counts removes an object; expected 2 or more, found 1")
        return self


class PolicyRule(Section):
    """Delete a fixed share of the visual tokens of every image."""

    tier: str
    """Tier of the questions."""
    family: str
    """Family of the questions; `all` for families without their own rule."""
    method: str
    """Token selection method (`ablate.methods`)."""
    layer: Count
    """Delete after this many decoder layers; 0 for before the decoder."""
    deleted_share: Share
    """Share of visual tokens deleted."""


class AdaptiveRule(Section):
    """Delete a share of the visual tokens that depends on a compression metric of the image's projected tokens."""

    tier: str
    """Tier of the questions."""
    family: str
    """Family of the questions."""
    metric: str
    """Compression metric at the `projector` tap, known before the decoder runs."""
    method: str
    """Token selection method."""
    edges: tuple[Float, ...]
    """Ascending bin edges of the metric."""
    deleted_shares: tuple[Share, ...]
    """Share deleted in each bin, one more than edges."""

    @model_validator(mode="after")
    def _bins(self) -> AdaptiveRule:
        if len(self.deleted_shares) != len(self.edges) + 1 or list(self.edges) != sorted(self.edges):
            raise ValueError(
                f"expected ascending edges and one more share than edges, found {self.edges}, {self.deleted_shares}"
            )
        return self

    def share_at(self, value: float) -> float:
        """Share deleted where the metric is `value`; 0 where it is undefined (NaN)."""
        if isnan(value):
            return 0.0
        return self.deleted_shares[bisect_right(self.edges, value)]


class PolicyFile(Section):
    """`policy.yaml`: the policy chosen by an ablation; input of `vtsweep evaluate --policy`."""

    policy_version: Literal[1] = 1
    """Version of this format."""
    model: str
    """Model on which it was chosen."""
    checkpoint: str = "base"
    """`base`, or the digest of the trial whose adapter the model carried."""
    weights: str = ""
    """Content digest of its weights, or `REPOSITORY@COMMIT`, and of its adapter; empty if unknown."""
    model_type: str = ""
    """Type of that model, as transformers calls it; empty if unknown."""
    n_layers: Count = 0
    """Its decoder layers; 0 if unknown."""
    hidden_size: Count = 0
    """Its width; 0 if unknown."""
    selector_settings: dict[str, dict[str, Float]] = Field(default_factory=dict)
    """Settings of the methods, as `ablate.selector_settings`."""
    max_accuracy_loss: Share
    """Loss of accuracy allowed when it was chosen."""
    fixed: tuple[PolicyRule, ...] = ()
    """Fixed rules, per tier and per family of it."""
    adaptive: tuple[AdaptiveRule, ...] = ()
    """Adaptive rules, one per family."""
