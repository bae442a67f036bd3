"""Colours, names and units of all figures, static and interactive. Colour-blind safe."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from orchestrator.compression.declaration import Metric
from orchestrator.compression.registry import ERRORS, METRICS, get_metric
from orchestrator.errors import ConfigError

# Okabe and Ito 2008, "Color Universal Design". Each group and family has one colour in all figures.
GROUP_COLOURS = {"vision": "#0072B2", "text": "#D55E00"}
GROUP_COLOURS_DARK = {"vision": "#56B4E9", "text": "#F28E4B"}
CONTROL_COLOUR = "#6E6E6E"
CONTROL_COLOUR_DARK = "#A0A0A0"

SERIES_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#8C6BB1", "#56B4E9", "#A6761D", "#0B3C5D", "#999933")
"""Series colours in order: points of a study, and names without a fixed colour."""
SERIES_COLOURS_DARK = ("#2CC295", "#E39BC4", "#F0B93A", "#B79BDB", "#7CC6F2", "#D2A24C", "#8FB8DE", "#C5C55A")

# Paul Tol's "muted" scheme (personal.sron.nl/~pault): nine colours distinguishable with any colour vision.
FAMILIES = ("colour", "shape", "existence", "count", "count_by_attribute", "comparison", "relation", "point", "caption")
FAMILY_COLOURS = dict(
    zip(
        FAMILIES,
        ("#CC6677", "#332288", "#B8A03E", "#117733", "#44AA99", "#AA4499", "#4A9BC7", "#882255", "#999933"),
        strict=True,
    )
)
FAMILY_COLOURS_DARK = dict(
    zip(
        FAMILIES,
        ("#EE8899", "#9A90F0", "#DDCC77", "#4FBF73", "#63D1BF", "#D97FCB", "#88CCEE", "#D96C9F", "#C5C55A"),
        strict=True,
    )
)

DIVERGING = "RdBu_r"
"""Blue: negative; red: positive; always centred on 0 and drawn over [-1, 1]."""
DIVERGING_DARK = ("#6db4ff", "#2f6fb3", "#262e37", "#b8503f", "#ff9a82")
"""The same hues for dark mode, with the page's background in the middle."""
SEQUENTIAL = "viridis"

TAP_NAMES = {
    "decoder": "decoder (residual stream)",
    "projector": "projector output",
    "encoder": "vision encoder",
    "cross_k": "cross-attention keys",
    "cross_v": "cross-attention values",
    "cross_out": "cross-attention output",
}

NAMES = {
    "n_objects": "number of objects",
    "n_shapes": "distinct shapes",
    "n_colours": "distinct colours",
    "n_crowds": "crowd regions",
    "n_categories": "distinct categories",
    "n_supercategories": "distinct supercategories",
    "dominant_colour": "dominant colour",
    "dominant_shape": "dominant shape",
    "dominant_supercategory": "dominant supercategory",
    "nearest_neighbour": "nearest-neighbour distance",
    "count": "counting",
    "count_by_attribute": "counting by attribute",
    "point": "pointing",
    "complexity_ratio": "complexity ratio",
    "vision_mean": "mean of vision tokens",
    "text_mean": "mean of text tokens",
    "last": "last token",
    "before": "last token before the image",
    "pixels": "pixels (control)",
    "random": "at random",
    "norm": "smallest norm first",
    "question_attention": "least attended by the question first",
    "fastv": "least attended by the last token first (FastV)",
    "debiased_attention": "least attended but for position first",
    "pyramiddrop": "PyramidDrop",
    "sparsevlm": "SparseVLM",
    "dart": "DART",
    "divprune": "DivPrune",
    "fastervlm": "FasterVLM",
    "visionzip": "VisionZip",
    "prumerge": "PruMerge",
    "tome": "ToMe",
    "similarity": "most similar first",
    "leverage": "least leverage first",
    "downsample": "smaller image instead",
}

PLACES = {
    "image": "all visual tokens",
    "changed": "tokens of what differs",
    "object": "tokens of objects",
    "background": "tokens of background",
    "question": "the question's tokens",
    "last": "the last token",
    "text": "the question's tokens",
    "vision": "visual tokens",
}
"""Display names of token places."""


def name_of(key: str) -> str:
    """Display name of an attribute, position, family or setting: `mean_size` -> `mean size`."""
    return NAMES.get(key, key.replace("_", " "))


@cache
def metric_of(name: str) -> Metric | None:
    """Registry entry of a metric; None if its package is not installed."""
    try:
        return get_metric(name)
    except ConfigError:
        return None


def metric_title(name: str) -> str:
    """Title with its variant: `Stable rank, centred`."""
    metric = metric_of(name)
    if metric is None:
        return name_of(name)
    variants = ["centred"] * metric.centred + ["massive tokens left out"] * metric.trimmed
    return f"{metric.title} ({', '.join(variants)})" if variants else metric.title


def metric_short(name: str) -> str:
    """The name as a short heading: `effective_rank_centred` -> `Effective rank (centred)`."""
    metric = metric_of(name)
    if metric is None:
        return name_of(name).capitalize()
    variants = ["centred"] * metric.centred + ["trimmed"] * metric.trimmed
    return metric.base.replace("_", " ").capitalize() + (f" ({', '.join(variants)})" if variants else "")


UNITS = {
    "gini": "index, 0 to 1",
    "hoyer": "index, 0 to 1",
    "participation_ratio": "tokens",
    "participation_ratio_share": "share of tokens",
    "norm_entropy": "share of tokens",
    "tokens_90": "share of tokens",
    "massive_share": "share of tokens",
    "stable_rank": "directions",
    "effective_rank": "directions",
    "spectral_participation": "directions",
    "rank_90": "directions",
    "mean_cosine": "cosine",
    "top5_alignment_text": "squared cosine",
    "top5_alignment_next": "squared cosine",
}


def metric_unit(name: str) -> str:
    """Unit of a metric's axis; empty for a metric of another package."""
    metric = metric_of(name)
    return UNITS.get(metric.base, "") if metric is not None else ""


def direction_of(name: str) -> int:
    """+1 if larger means more compressed, -1 if less, 0 without a direction or entry."""
    metric = metric_of(name)
    return metric.direction if metric is not None else 0


def direction_words(name: str) -> str:
    """`up = more compressed` or `down = more compressed`; empty for a metric without direction or entry."""
    metric = metric_of(name)
    if metric is None or not metric.direction:
        return ""
    return ("↑" if metric.direction > 0 else "↓") + " more compressed"


HEADLINE = (
    "gini",
    "participation_ratio_share",
    "norm_entropy",
    "mean_cosine",
    "stable_rank",
    "stable_rank_centred",
    "effective_rank",
    "effective_rank_centred",
)
"""Metrics of the static heat maps: concentration of norms, similarity, and rank, raw and centred."""


def main_metrics(names: Iterable[str]) -> list[str]:
    """Plain and centred metrics among `names` in the registry's order, then those of other packages."""
    present = list(names)
    left_out = {"massive_share", *ERRORS}
    registered = [n for n, m in METRICS.items() if n in present and not m.trimmed and n not in left_out]
    return registered + [n for n in present if n not in METRICS]


def headline_metrics(names: Iterable[str]) -> list[str]:
    """The headline metrics among `names`, which summaries and heat maps use; main metrics if there are none."""
    present = list(names)
    return [n for n in HEADLINE if n in present] or main_metrics(present)[:8]


def colour_of(name: str, index: int = 0, dark: bool = False) -> str:
    """The one colour of `name` (a token group or question family), else the `index`-th series colour."""
    groups = GROUP_COLOURS_DARK if dark else GROUP_COLOURS
    families = FAMILY_COLOURS_DARK if dark else FAMILY_COLOURS
    series = SERIES_COLOURS_DARK if dark else SERIES_COLOURS
    return groups.get(name) or families.get(name) or series[index % len(series)]
