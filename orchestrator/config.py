"""Every setting of a study as a frozen pydantic model.

A point of a study is one `RunConfig`. Its sections say *what* is computed (hashed into digests); `how` and `track`
say *how* (batch size, actors, devices, tracking server: logged, never hashed). This module imports
neither torch nor ray.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Int = Annotated[int, Field(strict=True)]
PositiveInt = Annotated[int, Field(strict=True, ge=1)]
Count = Annotated[int, Field(strict=True, ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]

StageName = Literal["capture", "correlate", "probe", "finetune", "ablate"]
STAGES: tuple[StageName, ...] = ("capture", "correlate", "probe", "finetune", "ablate")


class Section(BaseModel):
    """Base of every section: immutable, no unknown keys, field docstrings shown by `--help` and in errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


# ---------------------------------------------------------------- model


class ModelConfig(Section):
    """Which vision-language model, and how its weights are read."""

    name: str = "reference-joint"
    """Catalogue name, hub repository id, or a local checkpoint folder."""
    revision: str | None = None
    """Commit of a hub repository; required when `trust_remote_code` is on."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights' precision; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    trust_remote_code: bool = False
    """Run Python code from the repository; refused without a pinned `revision`."""
    adapter: str | None = None
    """Folder of a trained LoRA adapter to load on top of the base weights."""


# ---------------------------------------------------------------- data


class ScenesConfig(Section):
    """Synthetic scenes: 2-D objects whose every attribute is known exactly."""

    source: Literal["scenes"] = "scenes"
    n_images: PositiveInt = 200
    """Number of scenes."""
    seed: Count = 0
    """Scenes are determined by (seed, index) alone."""
    width: Annotated[int, Field(strict=True, ge=16, le=4096)] = 336
    """Canvas width, px."""
    height: Annotated[int, Field(strict=True, ge=16, le=4096)] = 336
    """Canvas height, px."""
    n_objects: tuple[Int, Int] = (1, 200)
    """Smallest and largest number of objects, inclusive."""
    n_objects_spacing: Literal["log", "uniform"] = "log"
    """How numbers of objects are drawn between the two."""
    size: tuple[PositiveFloat, PositiveFloat] = (0.04, 0.25)
    """Object diameter as a fraction of the shorter side; crowded scenes shrink it so that all objects fit."""
    shapes: tuple[str, ...] | None = None
    """Subset of shapes; all when absent."""
    colours: tuple[str, ...] | None = None
    """Subset of colours; all when absent."""
    overlap: bool = False
    """Let objects overlap (occlusion)."""
    texture: Share = 0.0
    """Strength of a pattern inside objects."""
    background: Literal["white", "gradient", "clutter"] = "white"
    """What lies behind the objects."""
    noise: Share = 0.0
    """Standard deviation of pixel noise, as a fraction of full scale."""
    max_rejected_fraction: Share = 0.01
    """A stage fails when more than this share of images is rejected."""

    @model_validator(mode="after")
    def _ranges(self) -> ScenesConfig:
        for name, (low, high) in (("n_objects", self.n_objects), ("size", self.size)):
            if low > high:
                raise ValueError(f"{name}: the smaller value comes first, found [{low}, {high}]")
        if self.n_objects[0] < 1 or self.n_objects[1] > 1000:
            raise ValueError(f"n_objects: expected 1 to 1000, found {list(self.n_objects)}")
        return self


class CocoConfig(Section):
    """A subset of COCO in its official layout (`annotations/instances_SPLIT.json`, `SPLIT/`)."""

    source: Literal["coco"] = "coco"
    root: str
    """Folder (or fsspec URI) that holds `annotations/` and the image folders."""
    split: str = "val2017"
    """Split name, as in `instances_SPLIT.json`."""
    n_images: PositiveInt | None = None
    """Number of images, drawn by `seed`; all when absent."""
    seed: Count = 0
    """Seed of the draw."""
    categories: tuple[str, ...] | None = None
    """Keep images with at least one object of these categories; all when absent."""
    min_objects: Count = 1
    """Keep images with at least this many annotated, non-crowd objects."""
    max_rejected_fraction: Share = 0.05
    """A stage fails when more than this share of images is rejected."""


class FolderConfig(Section):
    """A folder of images with a CSV of attributes: your own data."""

    source: Literal["folder"] = "folder"
    root: str
    """Folder (or fsspec URI) of images."""
    attributes: str = "attributes.csv"
    """CSV file below `root`: a column `file` and one column an attribute."""
    n_images: PositiveInt | None = None
    """Number of images, drawn by `seed`; all when absent."""
    seed: Count = 0
    """Seed of the draw."""
    max_rejected_fraction: Share = 0.05
    """A stage fails when more than this share of images is rejected."""


DataConfig = Annotated[ScenesConfig | CocoConfig | FolderConfig, Field(discriminator="source")]


# ---------------------------------------------------------------- capture and correlation


class CaptureConfig(Section):
    """What is read inside the model for each image."""

    prompt: str = "describe the image ."
    """The one fixed question asked of every image, so that a text position is the same token everywhere."""
    taps: (
        tuple[Literal["default", "decoder", "projector", "encoder", "cross_k", "cross_v", "cross_out"], ...] | None
    ) = None
    """Where to tap; `default` when absent: the decoder, the projector, and the cross-attention taps of `cross_kv`."""
    layers: tuple[Int, ...] | None = None
    """Decoder tap points (0 = input of the first layer, L = before the final norm); all when absent."""
    metrics: tuple[str, ...] | None = None
    """Compression metrics; all of the registry when absent."""
    keep_features: bool = True
    """Keep float16 features for probes."""
    n_vision_positions: Count = 16
    """Vision tokens kept for probes, at places drawn by `seed`."""
    n_text_positions: Count = 8
    """Text tokens kept for probes, spread evenly over the question."""
    seed: Count = 0
    """Seed of the kept positions."""


class CorrelateConfig(Section):
    """Spearman correlation of each metric with each image attribute, by layer."""

    attributes: tuple[str, ...] | None = None
    """Attributes; all of the source when absent."""
    n_bootstrap: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 500
    """Bootstrap resamples of images for the interval; 0 for none."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Level of the interval."""
    hold_fixed: str | None = "n_objects"
    """Attribute held fixed in the partial correlation; skipped where the source has no such attribute."""
    seed: Count = 0
    """Seed of the bootstrap."""


# ---------------------------------------------------------------- probes


class ProbeConfig(Section):
    """Which probes are fitted on the kept features, and how they are judged."""

    solvers: tuple[str, ...] = ("ridge", "logistic")
    """`ridge` for numbers, `logistic` for categories, `mlp` for both, or probes of installed packages by name."""
    engine: Literal["batched", "sklearn"] = "batched"
    """`sklearn` is the reference implementation; `batched` gives the same answers faster."""
    attributes: tuple[str, ...] | None = None
    """Attributes to predict; all of the source when absent."""
    taps: tuple[str, ...] | None = None
    """Taps whose features are probed; all captured ones when absent."""
    layers: tuple[Int, ...] | None = None
    """Tap points; all captured ones when absent."""
    positions: tuple[str, ...] | None = None
    """Kept positions (`vision_mean`, `vision_00`, `text_mean`, `text_00`, `last`); all when absent."""
    penalties: tuple[PositiveFloat, ...] = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
    """L2 penalties of `ridge` and `logistic`, relative to n; chosen on training images alone."""
    standardise: bool = True
    """Divide each feature by its deviation over training images (the mean is always taken off)."""
    n_folds: Annotated[int, Field(strict=True, ge=2, le=20)] = 5
    """Inner folds for the choice of the penalty (`ridge` uses exact leave-one-out, which is free)."""
    test_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """Share of images held out for the score."""
    n_bootstrap: Count = 200
    """Bootstrap resamples of held-out images for the interval."""
    controls: tuple[Literal["shuffled", "pixels"], ...] = ("shuffled", "pixels")
    """Shuffled-label control and a probe on downsampled pixels."""
    mlp_width: PositiveInt = 64
    """Width of each of the MLP's hidden layers."""
    mlp_depth: Annotated[int, Field(strict=True, ge=1, le=4)] = 2
    """Hidden layers of the MLP (the paper: two)."""
    mlp_steps: PositiveInt = 150
    """Optimiser steps of the MLP."""
    mlp_learning_rate: PositiveFloat = 6e-3
    """Adam learning rate of the MLP."""
    mlp_batch_size: PositiveInt = 200
    """Images an optimiser step of the MLP."""
    mlp_penalties: tuple[PositiveFloat, ...] = (1e-2, 1e-1)
    """L2 penalties of the MLP, chosen on one inner fold; a single one is taken as it is."""
    min_class_count: PositiveInt = 8
    """Classes with fewer images are left out, and the number left out is reported."""
    seed: Count = 0
    """Seed of splits, shuffles and initial weights."""
    search_trials: Count = 0
    """Ray Tune trials of the hyperparameter search; 0 for none. The space is the study's `search` section."""


# ---------------------------------------------------------------- fine-tuning


class GroupConfig(Section):
    """LoRA settings of one part of the model."""

    rank: Count = 16
    """LoRA rank; 0 leaves the part frozen."""
    learning_rate: PositiveFloat
    """Peak learning rate."""


class TaskConfig(Section):
    """Questions a fine-tuning mixture is drawn from, and the evaluation asks."""

    source: Literal["scenes", "coco"] = "scenes"
    """Where the images come from; `coco` uses the run's `data` section for the folder."""
    eval_split: str | None = None
    """COCO split that held-out questions are asked about; `data.split` when absent: new questions, but about images
    that may have been trained on."""
    low_families: tuple[str, ...] = ("colour", "shape", "existence", "count")
    """Families of the low tier."""
    high_families: tuple[str, ...] = ("relation", "comparison", "count", "count_by_attribute", "point")
    """Families of the high tier."""
    n_objects_high: tuple[Int, Int] = (2, 12)
    """Number of objects in high-tier scenes."""
    width: PositiveInt = 336
    """Canvas width, px."""
    height: PositiveInt = 336
    """Canvas height, px."""
    text_only_share: Share = 0.0
    """Share of examples without an image, beside the mixture."""
    caption_share: Share = 0.0
    """Share of captions, beside the mixture."""


class FinetuneConfig(Section):
    """One trial: LoRA fine-tuning on a mixture with a given ratio of high-complexity questions."""

    complexity_ratio: Share = 0.5
    """Share r of high-tier examples in the mixture; everything else is unchanged by it."""
    seed: Count = 0
    """Seed of the mixture, its order and LoRA's initial weights."""
    n_examples: PositiveInt = 2048
    """Size of the mixture."""
    n_steps: PositiveInt = 120
    """Optimiser steps (the mixture is repeated or cut as needed)."""
    batch_size: PositiveInt = 32
    """Examples an optimiser step."""
    accumulate: PositiveInt = 1
    """Micro-batches an optimiser step; `batch_size` is split over them."""
    method: Literal["lora", "full"] = "lora"
    """LoRA adapters or all weights."""
    language: GroupConfig = GroupConfig(rank=16, learning_rate=1e-3)
    projector: GroupConfig = GroupConfig(rank=16, learning_rate=1e-3)
    vision: GroupConfig = GroupConfig(rank=0, learning_rate=1e-4)
    alpha_over_rank: PositiveFloat = 2.0
    """LoRA alpha divided by rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """LoRA dropout."""
    warmup_share: Share = 0.05
    """Share of steps with linear warm-up; cosine decay after it."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping norm."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    task: TaskConfig = TaskConfig()
    n_eval_per_family: PositiveInt = 100
    """Held-out questions of each family and tier."""
    eval_seed: Count = 1_000_003
    """Seed of held-out scenes; never the mixture's."""
    answer_by: Literal["generate", "score"] = "generate"
    """`score` takes the most probable of a question's choices (decoding where it has none); for models that would
    answer in sentences."""
    instruction: str = ""
    """Words put after every question, as "Answer in one word."."""
    n_capture_images: PositiveInt = 64
    """Images of the run's `data` on which compression is measured before and after."""
    n_drift_tokens: PositiveInt = 64
    """Most tokens an image and group whose states are compared with the base model's."""
    search_trials: Count = 0
    """Samples of the study's `search` section that Ray Tune tries at each point; 0 for none."""
    search_algorithm: Literal["random", "optuna"] = "random"
    """How samples are drawn; `optuna` (an extra) learns from the mean accuracy of earlier samples of the point."""
    prune: bool = False
    """Stop weak samples of a search early (ASHA). Samples compete with those of their own point only, and the last
    one of a point is never stopped."""

    @model_validator(mode="after")
    def _divisible(self) -> FinetuneConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if self.eval_seed == self.seed:
            raise ValueError(f"eval_seed {self.eval_seed} equals seed: held-out scenes would be training scenes")
        return self


# ---------------------------------------------------------------- causal checks


class AblateConfig(Section):
    """Which causal checks are run, on which questions."""

    checks: tuple[Literal["deletion", "inside", "knockout", "patching", "policy", "link"], ...] = (
        "deletion",
        "knockout",
        "patching",
    )
    low_families: tuple[str, ...] = ("colour", "shape", "existence", "count")
    high_families: tuple[str, ...] = ("count", "relation")
    n_objects_high: tuple[Int, Int] = (2, 12)
    """Number of objects in high-tier scenes."""
    source: Literal["scenes", "coco"] = "scenes"
    """Images the questions are asked of; `coco` uses the run's `data` section. Patching always uses scenes."""
    n_per_family: PositiveInt = 100
    """Questions of each family and tier."""
    deleted_shares: tuple[Share, ...] = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
    """Shares of visual tokens deleted; 0 is always among them, 1 leaves the text alone."""
    methods: tuple[Literal["random", "norm", "attention", "similarity", "leverage", "downsample"], ...] = (
        "random",
        "norm",
        "downsample",
    )
    """How the deleted tokens are chosen; `downsample` shrinks the image to the same token budget instead."""
    seeds: tuple[Count, ...] = (0, 1, 2)
    """Seeds of random deletion."""
    inside_layers: tuple[Int, ...] | None = None
    """Numbers of decoder layers after which tokens are deleted in the `inside` check; every second when absent."""
    inside_methods: tuple[Literal["random", "norm", "attention", "similarity", "leverage"], ...] = (
        "random",
        "attention",
    )
    """How the tokens deleted inside the decoder are chosen; `attention` is that of the last layer before."""
    window: PositiveInt = 2
    """Width of a knock-out window, in layers."""
    patched: tuple[Literal["colour", "shape", "count", "relation"], ...] = ("colour", "shape", "count", "relation")
    """Attributes in which the scenes of a patched pair differ."""
    max_accuracy_loss: Share = 0.01
    """Loss of accuracy a policy may cost."""
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
    edges: tuple[float, ...]
    """Ascending values of the metric that part the bins."""
    deleted_shares: tuple[Share, ...]
    """Share deleted in each bin, one more than edges."""

    @model_validator(mode="after")
    def _bins(self) -> AdaptiveRule:
        if len(self.deleted_shares) != len(self.edges) + 1 or list(self.edges) != sorted(self.edges):
            raise ValueError(f"expected ascending edges and one share more, found {self.edges}, {self.deleted_shares}")
        return self

    def share_at(self, value: float) -> float:
        """Share deleted where the metric is `value`."""
        return self.deleted_shares[bisect_right(self.edges, value)]


class PolicyFile(Section):
    """`policy.yaml`: what an ablation chose, as `vtsweep evaluate --policy` applies it."""

    policy_version: Literal[1] = 1
    """Version of this format."""
    model: str
    """Model it was chosen on."""
    max_accuracy_loss: Share
    """Loss of accuracy allowed when it was chosen."""
    fixed: tuple[PolicyRule, ...] = ()
    """One share for each tier, and for each of its families."""
    adaptive: tuple[AdaptiveRule, ...] = ()
    """Shares that follow the image, one rule a family."""


# ---------------------------------------------------------------- how, track, run


class HowConfig(Section):
    """How the work is done. Logged, never hashed: no field here may change a result."""

    backend: Literal["ray", "local"] = "ray"
    """`local` runs in this process, for small work and debugging."""
    batch_size: PositiveInt = 16
    """Images a forward pass; halved automatically when memory runs out."""
    shard_size: PositiveInt = 64
    """Images a shard, the unit of work and of resume; the first run's value is kept on resume."""
    n_actors: PositiveInt | None = None
    """Model actors; one a GPU (or one in all on a CPU machine) when absent."""
    max_actors: PositiveInt | None = None
    """Upper size of an autoscaling actor pool; fixed size when absent."""
    gpus_per_actor: Annotated[float, Field(ge=0.0)] | None = None
    """GPUs an actor holds, fractions allowed; 1 where the cluster has GPUs, else 0, when absent."""
    cpus_per_actor: PositiveFloat = 1.0
    """CPUs an actor holds."""
    device_map: Literal["auto"] | None = None
    """`auto` spreads one model over the GPUs of its actor."""
    torch_threads: PositiveInt | None = None
    """Threads of one actor or trial; all cores shared evenly when absent."""
    concurrent_trials: PositiveInt | None = None
    """Fine-tuning trials at a time; as many as resources allow when absent."""
    gpus_per_trial: Annotated[float, Field(ge=0.0)] | None = None
    """GPUs each process of a trial holds, fractions allowed; 1 where the cluster has GPUs, else 0, when absent. More
    than 1 needs `device_map: auto`, which spreads the model over them."""
    processes_per_trial: PositiveInt = 1
    """Data-parallel processes of one trial: they share each step's batch. Trials beside each other come first: they
    lose nothing to communication."""
    address: str | None = None
    """Ray cluster address; `auto` joins a running one, absent starts a local one."""
    object_store_gb: PositiveFloat | None = None
    """Object store of a local Ray, GB; bounded by default."""
    no_progress_timeout_s: PositiveFloat = 300.0
    """Fail instead of waiting when no image finishes for this long, s."""
    max_retries: Count = 3
    """Restarts of a lost actor or trial."""
    reuse_workers: bool = True
    """Let one worker process run trial after trial with the base model it has loaded."""
    checkpoint_steps: PositiveInt = 50
    """Optimiser steps between a trial's checkpoints."""
    keep_adapters: bool = True
    """Keep trained LoRA weights of each trial."""


class TrackConfig(Section):
    """Where MLflow keeps runs. Never hashed."""

    enabled: bool = True
    uri: str | None = None
    """Tracking server or `sqlite:///FILE`; `mlflow.db` in the storage folder when absent."""
    experiment: str | None = None
    """Experiment name; the study's name when absent."""


class RunConfig(Section):
    """One point of a study."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = ScenesConfig()
    capture: CaptureConfig = CaptureConfig()
    correlate: CorrelateConfig = CorrelateConfig()
    probe: ProbeConfig = ProbeConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    ablate: AblateConfig = AblateConfig()
    how: HowConfig = HowConfig()


class SearchAxis(Section):
    """One searched hyperparameter, sampled by Ray Tune."""

    kind: Literal["uniform", "loguniform", "randint", "choice"]
    low: float | None = None
    high: float | None = None
    values: tuple[Any, ...] | None = None

    @model_validator(mode="after")
    def _complete(self) -> SearchAxis:
        if self.kind == "choice":
            if not self.values:
                raise ValueError("choice needs a non-empty `values`")
        elif self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"{self.kind} needs `low` < `high`")
        elif self.kind == "loguniform" and self.low <= 0:
            raise ValueError("loguniform needs `low` > 0")
        return self


class StudyConfig(Section):
    """A sweep file: shared settings, axes, and which stages run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the study; names its folder and its MLflow experiment."""
    description: str = ""
    """One sentence on what the study asks."""
    storage: str = "results"
    """Folder or URI where everything goes."""
    stages: tuple[StageName, ...] = ("capture", "correlate")
    """Stages, in order; a report and MLflow runs follow."""
    base: dict[str, Any] = {}
    """Settings shared by all points."""
    axes: dict[str, list[Any]] = {}
    """Dotted key -> values; the grid is their product."""
    zip: dict[str, list[Any]] = {}
    """Dotted key -> values taken in lockstep (all lists equally long)."""
    search: dict[str, SearchAxis] = {}
    """Dotted key -> search space of Ray Tune."""
    track: TrackConfig = TrackConfig()
