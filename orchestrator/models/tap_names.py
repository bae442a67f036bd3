"""Which taps a model of each kind has, and which are read unless a config says otherwise, by name alone."""

from __future__ import annotations

RESIDUAL_TAPS = ("decoder", "projector", "encoder")
CROSS_TAPS = (*RESIDUAL_TAPS, "cross_k", "cross_v", "cross_out")


def taps_of(vision_kind: str) -> tuple[str, ...]:
    """Return the taps of a `residual` or `cross_kv` model."""
    return CROSS_TAPS if vision_kind == "cross_kv" else RESIDUAL_TAPS


def chosen_taps(vision_kind: str, asked: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Return the taps that `capture.taps` stands for: `default` is all but the vision encoder's own layers."""
    default = tuple(tap for tap in taps_of(vision_kind) if tap != "encoder")
    named = [default if name == "default" else (name,) for name in asked or ("default",)]
    return tuple(dict.fromkeys(tap for group in named for tap in group))
