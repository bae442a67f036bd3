"""Scope of statements: model, images, prompt and trials, and alternative explanations that the design excludes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.config import DataConfig, FinetuneConfig, RunConfig, ScenesConfig

MOST_PROMPT = 120
"""Maximum number of characters shown of a prompt."""


def of_point(run: RunConfig, n_images: int | None, *, ablated: bool) -> str:
    """Images, prompt and questions of one point; empty without a capture and an ablation.

    Args:
        run: the point.
        n_images: captured images; None without a capture.
        ablated: whether an ablation asked questions.
    """
    parts = [of_images(run, n_images)] if n_images is not None else []
    if ablated:
        config = run.ablate
        low, high = config.n_objects_low, config.n_objects_high
        about = {
            "scenes": f"scenes of {low[0]} to {low[1]} and {high[0]} to {high[1]} objects",
            "coco": f"photographs of {low[0]} to {low[1]} and {high[0]} to {high[1]} objects",
            "questions": "the rows of question files",
        }[config.source]
        parts.append(
            f"ablations ask at most {config.n_per_family} questions a family and tier about {about}, seed {config.seed}"
        )
    return "; ".join(parts)


def of_images(run: RunConfig, n_images: int) -> str:
    """`400 designed scenes (factors n_objects, size_mean; seed 0), shown with "describe ."`."""
    shown = f'"{shortened(run.capture.prompt)}"'
    prompt = "the question of each row" if run.data.source == "questions" else shown
    return f"{n_images} {_images(run.data)}, shown with {prompt}"


def shortened(text: str) -> str:
    return text if len(text) <= MOST_PROMPT else text[: MOST_PROMPT - 3] + "..."


def _images(data: DataConfig) -> str:
    if isinstance(data, ScenesConfig):
        if data.design is None:
            return f"scenes of {data.n_objects[0]} to {data.n_objects[1]} objects (not a design; seed {data.seed})"
        levels = data.design.model_dump()
        factors = ", ".join(name for name, values in levels.items() if len(values) > 1)
        return f"designed scenes (factors {factors or 'none'}; seed {data.seed})"
    drawn = "" if data.n_images is None else f" (a draw by seed {data.seed})"
    kinds = {"coco": "photographs with boxes", "folder": "images of a folder", "questions": "rows of question files"}
    return f"{kinds[data.source]}{drawn}"


def of_trials(runs: Sequence[RunConfig]) -> tuple[str, str]:
    """Scope of a sweep's effects, and alternative explanations, excluded by the design or not.

    Args:
        runs: of the trials of one model, finished or not.
    """
    config = runs[0].finetune
    ratios = sorted({run.finetune.complexity_ratio for run in runs})
    seeds = sorted({run.finetune.seed for run in runs})
    trained = ", ".join(map(str, sorted({run.finetune.n_examples for run in runs})))
    steps = ", ".join(map(str, sorted({run.finetune.n_steps for run in runs})))
    task = config.task
    trained_model = (
        f"{runs[0].model.label}, trained on {trained} {_questions(config)} for {steps} steps by {config.method}"
    )
    text = (
        f"{trained_model}; ratios {', '.join(f'{ratio:g}' for ratio in ratios)}, {len(seeds)} "
        f"seed{'s' * (len(seeds) > 1)} "
        f"({', '.join(map(str, seeds))}); families {', '.join(task.families + task.novel_families)}"
    )
    return text, "; ".join(_excluded([run.finetune for run in runs]))


def _questions(config: FinetuneConfig) -> str:
    task = config.task
    if task.source == "questions":
        by = f"column {task.complexity}: lower and upper third" if task.complexity else "the rows' own tier"
        return f"rows of question files (tiers by {by})"
    low, high = task.n_objects_low, task.n_objects_high
    about = "scenes" if task.source == "scenes" else "photographs"
    return f"questions about {about} of {low[0]} to {low[1]} (low tier) and {high[0]} to {high[1]} objects (high tier)"


def _excluded(configs: Sequence[FinetuneConfig]) -> Iterator[str]:
    """Answer form, novelty and number of objects as alternative explanations: excluded, and how, or not."""
    task = configs[0].task
    if task.source == "questions":
        yield "wording and answer form are not excluded: rows of both tiers are the file's own"
    else:
        yield "excluded: answer form, as families, wordings and choices are the same in both tiers"
    scored = {config.answer_by for config in configs} == {"score"}
    yield "closed answers are " + ("scored among their choices" if scored else "generated: their form counts")
    shares = sorted({config.novelty_ratio for config in configs})
    if shares == [0.0] and not task.novel_families:
        yield "excluded: novelty, as no family is new at any ratio"
    else:
        share = ", ".join(f"{s:g}" for s in shares)
        yield f"excluded: novelty, as new families have the same share in both tiers ({share} of the mixture)"
    if task.source != "questions":
        yield "not excluded: what goes with the number of objects, such as covered area (columns examples/...)"
