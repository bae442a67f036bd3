"""Names of the taps of each kind of model, and the default taps."""

from __future__ import annotations

RESIDUAL_TAPS = ("decoder", "projector", "encoder")
CROSS_TAPS = (*RESIDUAL_TAPS, "cross_k", "cross_v", "cross_out")


def taps_of(vision_kind: str) -> tuple[str, ...]:
    """Return the taps of a `residual` or `cross_kv` model."""
    return CROSS_TAPS if vision_kind == "cross_kv" else RESIDUAL_TAPS


def chosen_taps(vision_kind: str, requested: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Return the taps selected by `capture.taps`: by default all except the layers of the vision encoder."""
    default = tuple(tap for tap in taps_of(vision_kind) if tap != "encoder")
    named = [default if name == "default" else (name,) for name in requested or ("default",)]
    return tuple(dict.fromkeys(tap for group in named for tap in group))
