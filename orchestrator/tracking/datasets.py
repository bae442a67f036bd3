"""The data sets of a run as MLflow lists them: images, training mixture, held-out questions."""

from __future__ import annotations

from typing import Any

from orchestrator.config import RunConfig
from orchestrator.scrub import scrub_tree
from orchestrator.store.stage_folder import digest

HELD_OUT = "held-out questions"
"""Context of the held-out questions of a trial."""


def datasets(run: RunConfig | None, stage: str) -> dict[str, dict[str, Any]]:
    """Context -> name, digest, settings and size `n` (None for all).

    A trial has its training mixture and its held-out questions; every run has its images, under the stage's name.
    """
    if run is None:
        return {}
    settings = scrub_tree(run.data.model_dump(mode="json"))
    choice = settings.get("split") or f"seed {settings['seed']}"
    n = settings.get("n_images")
    name = f"{settings['source']} {choice}, {n or 'all'} images"
    data_sets = {stage: {"name": name, "digest": digest(settings), "settings": settings, "n": n}}
    if stage == "finetune":
        config = run.finetune
        task = scrub_tree(config.task.model_dump(mode="json"))
        images = {} if config.task.source == "scenes" else {"images": data_sets[stage]["digest"]}
        drawn = {"ratio": config.complexity_ratio, "novelty": config.novelty_ratio, "seed": config.seed}
        mixture = {**task, **images, **drawn, "n": config.n_examples}
        name = f"{config.task.source} mixture r={config.complexity_ratio:g} seed {config.seed}"
        data_sets["training"] = _named(name, mixture, config.n_examples)
        questions = {**task, **images, "seed": config.eval_seed, "n": config.n_eval_per_family}
        name = f"{config.task.source} questions seed {config.eval_seed}, {config.n_eval_per_family} a family"
        data_sets[HELD_OUT] = _named(name, questions, config.n_eval_per_family)
    return data_sets


def _named(name: str, settings: dict[str, Any], n: int | None) -> dict[str, Any]:
    return {"name": name, "digest": digest(settings), "settings": settings, "n": n}
