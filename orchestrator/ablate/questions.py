"""The questions of an ablation, and the half of the images that each belongs to. This module does not import torch."""

from __future__ import annotations

import zlib
from typing import Any

from orchestrator.config import RunConfig, TaskConfig
from orchestrator.data.mixture import Example, ExampleMaker
from orchestrator.data.source import SCENES_VERSION
from orchestrator.data.task_source import open_task_source

SEED_SHIFT = 1
"""Added to `ablate.seed` for fresh questions."""


def half_of(cluster: str) -> str:
    """`choose` or `judge`: a policy is chosen on one half of the images and judged on the other."""
    return ("choose", "judge")[zlib.crc32(cluster.encode()) % 2]


def identify_images(run: RunConfig) -> dict[str, Any]:
    """Identity of the images of an ablation, part of its digest.

    Raises:
        ConfigError: `ablate.source` is not the source of the run's `data`.
    """
    source = open_task_source(run.data, run.ablate.source, "ablate.source")
    return {"scenes": SCENES_VERSION, **(source.fingerprint() if source else {})}


def make_questions(
    run: RunConfig, *, fresh: bool = False, rejected: list[tuple[int, str, str]] | None = None
) -> list[Example]:
    """`n_per_family` questions of each family and tier, drawn with `ablate.seed`.

    Question files may give fewer: each row is asked at most once, and rows without an image never.

    Args:
        fresh: new questions to judge a policy: scenes from another seed; photographs and question files from the half
            of the images that the policy was not chosen on.
        rejected: `ExampleMaker.rejected` is appended to it.

    Raises:
        ConfigError: a family that does not exist, has no such tier, or does not suit the source's images.
    """
    config = run.ablate
    task = TaskConfig(
        source=config.source,
        complexity=config.complexity,
        n_objects_low=config.n_objects_low,
        n_objects_high=config.n_objects_high,
    )
    among = (lambda cluster: half_of(cluster) == "judge") if fresh else None
    source = open_task_source(run.data, config.source, "ablate.source")
    maker = ExampleMaker(task, source, among, with_image=True)
    seed = config.seed + SEED_SHIFT * fresh
    examples = [
        maker.make(family, tier, seed, index)
        for tier, family in maker.wanted(config.low_families, config.high_families)
        for index in range(maker.at_most(family, tier, seed, config.n_per_family))
    ]
    if rejected is not None:
        rejected += maker.rejected()
    return examples
