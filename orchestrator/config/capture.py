"""Settings of the model, of capture, and of the correlation with image attributes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from orchestrator.config.section import Count, Section


class ModelConfig(Section):
    """The vision-language model, and how its weights are loaded."""

    name: str = "reference-joint"
    """Catalogue name, hub repository id, or a local checkpoint folder."""
    revision: str | None = None
    """Commit of a hub repository; required when `trust_remote_code` is on. A folder has none."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; `auto` is bfloat16 if the machine or cluster has a GPU, else float32; it is resolved
    before work starts, and digests contain the resolved precision."""
    trust_remote_code: bool = False
    """Run Python code from the repository; needs a pinned `revision`."""
    adapter: str | None = None
    """Folder of a trained LoRA adapter to load on top of the base weights."""
    allow: tuple[str, ...] = ()
    """Keys of weights (patterns such as `lm_head.*`) that may be missing, unexpected or of a different shape; or the
    base model that an adapter names. Missing weights are initialised from a fixed seed."""
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = "2026-01-01"
    """Current date for chat templates that write it into the prompt."""
    fit: Literal["pad", "crop", "stretch"] = "pad"
    """Treatment of images that the processor would crop (LLaVA-1.5's): `pad` to the processor's aspect ratio, `stretch`
    to it, or `crop`, which removes the sides although questions may refer to them."""

    @property
    def label(self) -> str:
        """The model's name, followed by the adapter's, without their folders; a trial's adapter is named by its
        digest."""
        name = self.name.rstrip("/").rsplit("/", 1)[-1]
        if self.adapter is None:
            return name
        folders = [part for part in self.adapter.split("/") if part not in ("", ".")] or [self.adapter]
        adapter_name = folders[-2] if folders[-1] == "adapter" and len(folders) > 1 else folders[-1]
        return f"{name} + {adapter_name}"


TapName = Literal["default", "decoder", "projector", "encoder", "cross_k", "cross_v", "cross_out"]


class CaptureConfig(Section):
    """What is recorded in the model for each image."""

    prompt: Annotated[str, Field(min_length=1)] = "describe the image ."
    """The prompt, the same for every image, so that a text position is always the same token."""
    taps: Annotated[tuple[TapName, ...], Field(min_length=1)] | None = None
    """Taps; default: the decoder, the projector, and the cross-attention taps of `cross_kv`."""
    layers: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Decoder tap points (0 = input of the first layer, L = before the final norm); all when absent."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Compression metrics; default: those of norms and of one Gram matrix, and those that `spectrum` adds."""
    spectrum: Literal["none", "exact", "estimate"] = "none"
    """Metrics of all singular values (effective rank, rank_90): none; exact, at about the cost of another forward pass;
    or estimated, with standard errors, in separate columns: about a tenth of that cost on a GPU, slower than exact on
    a CPU."""
    keep_features: bool = True
    """Keep float16 features for probes."""
    n_vision_positions: Count | Literal["all"] = 16
    """Vision tokens kept for probes, at positions drawn by `seed`; `all`: as many as the model has for an image of the
    data's size, so that all tokens of such images are kept."""
    object_positions: bool = False
    """Keep for probes the mean of the vision tokens that show an object (`vision_object`) and of those that show none
    (`vision_background`); of scenes and COCO, whose objects' boxes are known."""
    n_text_positions: Count = 8
    """Text tokens kept for probes, evenly spaced over the question."""
    seed: Count = 0
    """Seed of the kept positions."""

    @field_validator("prompt")
    @classmethod
    def _has_words(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError(f"found {prompt!r}; expected a question or an instruction")
        return prompt

    @field_validator("layers")
    @classmethod
    def _in_order(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Sorted: the order of layers does not change the capture."""
        return layers and tuple(sorted(set(layers)))


class CorrelateConfig(Section):
    """Spearman correlation of each metric with each image attribute, by layer."""

    attributes: tuple[str, ...] | None = None
    """Attributes; all of the source when absent."""
    n_bootstrap: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 500
    """Bootstrap resamples of images for the interval; 0 for none."""
    confidence: Annotated[float, Field(strict=True, gt=0.5, lt=1.0)] = 0.95
    """Level of the interval."""
    hold_fixed: tuple[str, ...] = ("n_objects",)
    """Attributes held fixed in the conditional correlation (one name or several); attributes that the source lacks are
    skipped; without any there is no conditional correlation."""
    smallest_rho: Annotated[float, Field(strict=True, gt=0.0, lt=1.0)] = 0.2
    """Smallest rank correlation of interest (a typical effect: Gignac and Szodorai 2016); used by the findings."""
    seed: Count = 0
    """Seed of the bootstrap."""

    @field_validator("hold_fixed", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """Accept a single name; null for no covariates."""
        return () if value is None else (value,) if isinstance(value, str) else value
