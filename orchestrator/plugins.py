"""Identity of plug-ins from other packages: package and version."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points


def registered_by(group: str, names: Iterable[str] | None = None) -> dict[str, str]:
    """Package and version (`mine 1.0`) that registers each of `names` (all when None) in an entry-point group.

    Nothing is imported.

    Part of a stage's digest, so that results of different versions are kept apart.
    """
    packages = _packages(group)
    return {name: packages[name] for name in (packages if names is None else names) if name in packages}


@cache
def _packages(group: str) -> dict[str, str]:
    points = entry_points(group=group)
    return {point.name: f"{point.dist.name} {point.dist.version}" if point.dist else "unknown" for point in points}
