"""Registry of compression metrics; read by schema, configuration checks, documentation, correlation and report.

Importing this module does not import torch. The entries are in `entries.py`; this module adds their variants and the
metrics that other packages register.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Protocol

from orchestrator.compression.declaration import Metric, Spectrum
from orchestrator.compression.entries import ALIGNMENT_BASES, BASES, ESTIMATES, MASSIVE_SHARE
from orchestrator.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from orchestrator.compression.shared import Shared

ENTRY_POINT_GROUP = "vtsweep.metrics"
"""Entry-point group by which a package adds metrics; each entry names a `compression.registry.UserMetric`."""

_CENTRED = "Centred: the mean token is subtracted first (PCA of the tokens); NaN if all tokens are equal."
_TRIMMED = "Trimmed: massive tokens (see massive_share) are left out first; equal to the plain value if there are none."


def _variants(metric: Metric) -> Iterable[Metric]:
    for trimmed in (False, True):
        for centred in (False, True) if metric.family != "norm" else (False,):
            ends = "_se" * metric.name.endswith("_se")
            yield replace(
                metric,
                name=metric.name.removesuffix("_se") + "_centred" * centred + "_trimmed" * trimmed + ends,
                base=metric.name,
                centred=centred,
                trimmed=trimmed,
                misleads=" ".join([metric.misleads, *[_CENTRED] * centred, *[_TRIMMED] * trimmed]),
            )


ALIGNMENTS: dict[str, Metric] = {
    v.name: v for m in ALIGNMENT_BASES.values() for v in (_variants(m) if m.name != "top5_alignment_chance" else (m,))
}
"""Alignments by name, variants included."""

METRICS: dict[str, Metric] = {
    **{v.name: v for m in BASES.values() for v in _variants(m)},
    "massive_share": MASSIVE_SHARE,
    **ALIGNMENTS,
    **{v.name: v for m in ESTIMATES.values() for v in _variants(m)},
}
"""Every built-in column of `layer_metrics` by name, variants included."""

METRIC_NAMES: tuple[str, ...] = tuple(METRICS)

ERRORS = frozenset(name for name, metric in METRICS.items() if metric.base.endswith("_se"))
"""Columns that hold an estimate's standard error, of all variants: no metric to relate, compare or show."""


class MetricFunction(Protocol):
    """Function of a user's metric: hidden (B, N, D) float32 with zeros at padding, mask (B, N) -> (B,) float."""

    def __call__(self, hidden: Tensor, mask: Tensor, shared: Shared) -> Tensor: ...


@dataclass(frozen=True)
class UserMetric:
    """A metric of another package: the object that its `vtsweep.metrics` entry point names."""

    metric: Metric
    function: MetricFunction


@cache
def _user_points() -> dict[str, EntryPoint]:
    """Entry points by name, cached: scanning the installed packages takes milliseconds."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def load_user_metric(name: str) -> UserMetric:
    """Import the metric `name` that another package registers.

    Raises:
        ConfigError: no such metric, or its entry point does not name a `UserMetric` of that name.
    """
    if name not in _user_points():
        raise ConfigError(f"unknown compression metric {name!r}.{did_you_mean(name, metric_names())}")
    user_metric = _user_points()[name].load()
    if not isinstance(user_metric, UserMetric) or user_metric.metric.name != name:
        raise ConfigError(
            f"entry point {name!r} of group {ENTRY_POINT_GROUP!r} must name a UserMetric called {name!r}; "
            f"found {user_metric!r}"
        )
    return user_metric


def metric_names() -> tuple[str, ...]:
    """Names of all metrics, built-in first, then those of installed packages (which are not imported)."""
    return (*METRIC_NAMES, *sorted(_user_points().keys() - METRICS.keys()))


def get_metric(name: str) -> Metric:
    """The entry of metric `name`; raises `ConfigError` with the closest known name."""
    return METRICS.get(name) or load_user_metric(name).metric


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """`names` without duplicates; raises `ConfigError` for an unknown one. Imports nothing."""
    known = metric_names()
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in known:
            raise ConfigError(f"unknown compression metric {name!r}.{did_you_mean(name, known)}")
    return chosen


def default_names(spectrum: Spectrum = "none") -> tuple[str, ...]:
    """The default set: metrics of norms and of one Gram matrix, metrics of the full spectrum according to `spectrum`,
    and those of installed packages."""
    costs = {"norms", "gram", *({"exact": ("spectrum",), "estimate": ("estimate",)}.get(spectrum, ()))}
    return tuple(name for name in metric_names() if name not in METRICS or METRICS[name].needs in costs)


def chosen_names(names: Iterable[str] | None, spectrum: Spectrum = "none") -> tuple[str, ...]:
    """The metrics selected by `capture.metrics` and `capture.spectrum` together.

    Raises:
        ConfigError: an unknown name, or a metric of the full spectrum that `spectrum` does not provide. An estimate
            never replaces the exact value, and a costly spectrum is computed on request only.
    """
    if names is None:
        return default_names(spectrum)
    chosen = check_names(names)
    for name in chosen:
        needs = METRICS[name].needs if name in METRICS else "norms"
        required = {"spectrum": "exact", "estimate": "estimate"}.get(needs)
        if required not in (None, spectrum):
            other = name.replace("effective_rank", "effective_rank_estimate").replace("rank_90", "rank_90_estimate")
            hint = f"; its estimate is {other!r}" if needs == "spectrum" and spectrum == "estimate" else ""
            raise ConfigError(
                f"capture.metrics: {name!r} needs capture.spectrum: {required}; found {spectrum!r}{hint}. It "
                f"costs about "
                + (
                    "as much as the forward pass itself."
                    if required == "exact"
                    else "a tenth of the forward pass on a GPU."
                )
            )
    return chosen
