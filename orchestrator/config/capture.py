"""Settings of the model, of what is read inside it, and of the correlation with image attributes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from orchestrator.config.section import Count, Section


class ModelConfig(Section):
    """Which vision-language model, and how its weights are read."""

    name: str = "reference-joint"
    """Catalogue name, hub repository id, or a local checkpoint folder."""
    revision: str | None = None
    """Commit of a hub repository; required when `trust_remote_code` is on."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights' precision; `auto` is bfloat16 where the machine or cluster has a GPU, else float32; it is settled
    before work starts, and digests hold the precision that is used."""
    trust_remote_code: bool = False
    """Run Python code from the repository; refused without a pinned `revision`."""
    adapter: str | None = None
    """Folder of a trained LoRA adapter to load on top of the base weights."""
    allow: tuple[str, ...] = ()
    """Keys of weights (patterns such as `lm_head.*`) that may be missing, left over or of another shape, or the base
    model an adapter names. Missing ones are drawn from a fixed seed."""
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = "2026-01-01"
    """The day that a chat template takes for today, where it writes the date into the prompt."""
    fit: Literal["pad", "crop", "stretch"] = "pad"
    """What is done to a picture whose processor would cut off its sides (LLaVA-1.5's): `pad` fills it to the shape the
    processor takes, `stretch` squeezes it, `crop` lets its sides go unseen, although questions speak of them."""

    @property
    def label(self) -> str:
        """The name, and the adapter's after it, without the folders they lie in; a trial's adapter by its digest."""
        name = self.name.rstrip("/").rsplit("/", 1)[-1]
        if self.adapter is None:
            return name
        folders = [part for part in self.adapter.split("/") if part not in ("", ".")] or [self.adapter]
        own = folders[-2] if folders[-1] == "adapter" and len(folders) > 1 else folders[-1]
        return f"{name} + {own}"


TapName = Literal["default", "decoder", "projector", "encoder", "cross_k", "cross_v", "cross_out"]


class CaptureConfig(Section):
    """What is read inside the model for each image."""

    prompt: Annotated[str, Field(min_length=1)] = "describe the image ."
    """The one fixed question asked of every image, so that a text position is the same token everywhere."""
    taps: Annotated[tuple[TapName, ...], Field(min_length=1)] | None = None
    """Where to tap; `default` when absent: the decoder, the projector, and the cross-attention taps of `cross_kv`."""
    layers: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Decoder tap points (0 = input of the first layer, L = before the final norm); all when absent."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Compression metrics; when absent those of norms and of one Gram matrix, and what `spectrum` adds."""
    spectrum: Literal["none", "exact", "estimate"] = "none"
    """Metrics of all singular values (effective rank, rank_90): left out; exact, at about the cost of another forward
    pass; or estimated with standard errors, in columns of their own: on a GPU at about a tenth of it, on a CPU slower
    than exact."""
    keep_features: bool = True
    """Keep float16 features for probes."""
    n_vision_positions: Count | Literal["all"] = 16
    """Vision tokens kept for probes, at places drawn by `seed`; `all`: as many as the model has of an image of the
    data's size, so that every one is kept where images have that many."""
    n_text_positions: Count = 8
    """Text tokens kept for probes, spread evenly over the question."""
    seed: Count = 0
    """Seed of the kept positions."""

    @field_validator("layers")
    @classmethod
    def _in_order(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """The same layers in another order are the same capture."""
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
    """Attributes held fixed in the conditional correlation (a name, or several); those that the source lacks are
    skipped, and with none of them there is no conditional correlation."""
    smallest_rho: Annotated[float, Field(strict=True, gt=0.0, lt=1.0)] = 0.2
    """Smallest rank correlation of interest (a typical effect: Gignac and Szodorai 2016); findings judge by it."""
    seed: Count = 0
    """Seed of the bootstrap."""

    @field_validator("hold_fixed", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """One name may stand alone; null holds nothing fixed."""
        return () if value is None else (value,) if isinstance(value, str) else value
