"""Preflight checks before work starts; errors name place, found and expected value, and the closest known name."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from orchestrator.ablate.selectors.check import check_layers, check_methods, check_model_gives
from orchestrator.config import RunConfig, StageName
from orchestrator.config.search_space import check_search
from orchestrator.config.sweep import Sweep
from orchestrator.errors import ConfigError, DataError, ModelError, StorageError, VtsweepError, did_you_mean
from orchestrator.models.catalogue import resolve
from orchestrator.models.hub import use_cache_where_unreachable
from orchestrator.probes.split import check_enough
from orchestrator.store.filesystem import Storage
from orchestrator.store.resolved_point import ResolvedPoint, distinct
from orchestrator.store.stage_folder import canonical_json
from orchestrator.study.asked import Asking
from orchestrator.study.resolve import Resolver
from orchestrator.study.row_pictures import row_footprint

Item = TypeVar("Item")
Found = TypeVar("Found")


def preflight(sweep: Sweep, stages: Sequence[StageName], listed: Sequence[StageName] = ()) -> list[ResolvedPoint]:
    """Check storage, data, models and names of every point; starts nothing and loads no weights.

    Args:
        stages: stages that will run.
        listed: further stages in the study's record; they are resolved as well.

    Returns:
        Every point, resolved; input of the stages, the record and the estimates.

    Raises:
        VtsweepError: of the first kind of problem found; every problem of a kind is in the message.
    """
    runs = [point.run for point in sweep.points]
    storage = Storage(sweep.study.storage)
    check_search(sweep)
    asking = Asking(stages)
    _each(_by_model(runs, asking), lambda run: _check_model(run, asking))
    for run in runs:
        check_names(run, stages, None)
    resolver = Resolver(storage, [*stages, *listed])
    points = _each(sweep.points, resolver.point)
    for point in points:
        check_names(point.run, stages, list(point.attribute_kinds))
        if "probe" in stages:
            check_enough(point.n_images, point.run.probe.test_fraction, point.run.probe.n_folds)
    _each(by_questions(runs), lambda run: check_file_questions(run, stages))
    check_storage(storage, estimate_bytes(points))
    return points


def _each(items: Iterable[Item], check: Callable[[Item], Found]) -> list[Found]:
    """Apply `check` to all items before raising, so that the error lists all problems of one kind."""
    results: list[Found] = []
    errors: list[VtsweepError] = []
    for item in items:
        try:
            results.append(check(item))
        except VtsweepError as error:
            errors.append(error)
    if errors:
        raise type(errors[0])("\n".join(dict.fromkeys(str(error) for error in errors))) from errors[0]
    return results


def _check_model(run: RunConfig, asking: Asking) -> None:
    from orchestrator.models.check import check_model
    from orchestrator.models.known_config import read_config
    from orchestrator.models.stacks import cross_layers, decoder_stack

    if resolve(run.model).folder is None:
        use_cache_where_unreachable()
    check_model(run.model, **asking(run))
    if "ablate" in asking.stages:
        config = read_config(resolve(run.model))
        check_model_gives(run.ablate, str(config.model_type))
        check_layers(run.ablate, decoder_stack(config).layers, cross_layers(config))


def _by_model(runs: Sequence[RunConfig], asking: Asking) -> list[RunConfig]:
    """Return one run of each model and what it is asked."""
    by_needs = {}
    for run in reversed(runs):
        methods = canonical_json(run.ablate.model_dump(mode="json")) if "ablate" in asking.stages else ""
        by_needs[run.model, methods, *asking(run).values()] = run
    return list(by_needs.values())[::-1]


def check_models(runs: Sequence[RunConfig], stages: Sequence[StageName]) -> list[str]:
    """Reject incomplete models; return what cannot be checked here because weights or packages are missing."""
    from orchestrator.models.extras import missing_extras

    unknown: list[str] = []
    at_hand: list[RunConfig] = []
    asking = Asking(stages)
    for run in _by_model(runs, asking):
        try:
            missing = missing_extras(resolve(run.model))
        except ModelError as error:
            unknown.append(str(error))
            continue
        if missing:
            unknown.append(f"{run.model.name} needs pip install 'vtsweep[{','.join(missing)}]' where it runs")
        else:
            at_hand.append(run)
    _each(at_hand, lambda run: _check_model(run, asking))
    return unknown


def check_names(run: RunConfig, stages: Sequence[StageName], attributes: Sequence[str] | None) -> None:
    """Reject unknown metrics, probes and question families, and attributes that the source lacks (None: unknown)."""
    from orchestrator.compression.registry import chosen_names, metric_names
    from orchestrator.probes.user import probe_names

    requested: list[tuple[str, tuple[str, ...] | None, Sequence[str] | None]] = [
        ("capture.metrics", run.capture.metrics, metric_names())
    ]
    if "correlate" in stages:
        requested.append(("correlate.attributes", run.correlate.attributes, attributes))
        if "hold_fixed" in run.correlate.model_fields_set and run.correlate.hold_fixed:
            requested.append(("correlate.hold_fixed", run.correlate.hold_fixed, attributes))
    if "probe" in stages:
        requested.append(("probe.attributes", run.probe.attributes, attributes))
        requested.append(("probe.solvers", run.probe.solvers, probe_names()))
    for key, names, allowed in requested:
        for name in names or ():
            if allowed is not None and name not in allowed:
                raise ConfigError(f"{key}: unknown name {name!r}.{did_you_mean(name, allowed)}")
    chosen_names(run.capture.metrics, run.capture.spectrum)
    if "finetune" in stages and run.finetune.task.source != "questions":
        _check_families("finetune.task", run.finetune.task.families + run.finetune.task.novel_families)
    if "ablate" in stages and run.ablate.source != "questions":
        _check_families("ablate", run.ablate.low_families + run.ablate.high_families)
    if "ablate" in stages:
        check_methods(run.ablate)


def _check_families(key: str, names: Sequence[str]) -> None:
    from orchestrator.data.templates import templates

    families = [name for name in templates() if name not in ("plurals", "caption")]
    for name in names:
        if name not in families:
            raise ConfigError(f"{key}: unknown question family {name!r}.{did_you_mean(name, families)}")


def check_file_questions(run: RunConfig, stages: Sequence[StageName]) -> None:
    """Reject families, tiers and complexity columns that are absent from the rows of question files.

    Raises:
        ConfigError: such a setting; names the existing families or numeric columns.
        DataError: the files cannot be read, or hold too many bad rows.
    """
    from orchestrator.data.files.source import QuestionSource
    from orchestrator.data.mixture import check_mixture
    from orchestrator.data.task_source import open_task_source

    if run.data.source == "questions":
        source = open_task_source(run.data, "questions", "data.source")
        assert isinstance(source, QuestionSource), "asked for above"
        counts, limit = source.image_counts(), run.data.max_rejected_fraction * len(source)
        if counts.n_several:
            _check_several(run, f"{counts.first_several} names several, as {counts.n_several} of {len(source)} rows do")
        if counts.n_without > limit and {"capture", "correlate", "probe"} & set(stages):
            raise DataError(
                f"data.file: {counts.first_without} has no image, as {counts.n_without} of {len(source)} rows; capture "
                "needs one for each. Leave these rows out (data.where, data.families), or run finetune and ablate alone"
            )
    if "finetune" in stages and run.finetune.task.source == "questions":
        from orchestrator.finetune.finetune_stage import task_source

        check_mixture(run.finetune.task, task_source(run), task_source(run, held_out=True))
    if "ablate" in stages and run.ablate.source == "questions":
        from orchestrator.ablate.questions import make_questions

        small_ablation = run.ablate.model_copy(update={"n_per_family": 1})
        make_questions(run.model_copy(update={"ablate": small_ablation}))


def _check_several(run: RunConfig, words: str) -> None:
    """Refuse rows of several images for a model that is shown one a question."""
    from orchestrator.models.known_config import read_config
    from orchestrator.models.several import check_several

    try:
        check_several(str(read_config(resolve(run.model)).model_type))
    except ModelError as error:
        raise DataError(
            f"data.file: {words}. {run.model.name}, {error}. Lay them side by side in one picture, or leave these "
            "rows out (data.where, data.families)"
        ) from None


def by_questions(runs: Sequence[RunConfig]) -> list[RunConfig]:
    """One run per distinct data section, task and ablation."""
    return list({(str(r.data), r.finetune.task, str(r.ablate)): r for r in reversed(runs)}.values())[::-1]


def estimate_bytes(points: Sequence[ResolvedPoint]) -> int:
    """Upper bound of the size of results, bytes; features of captured tokens dominate."""
    captured = [point for point in points if "capture" in point.stages]
    return sum(point.n_images * row_footprint(point.run).bytes_per_image for point in distinct(captured, "capture"))


def check_storage(storage: Storage, needed: int = 0) -> None:
    """Check that storage is writable and that a local disk has at least `needed` bytes free.

    Raises:
        StorageError: it is not; names the problem and a remedy.
    """
    name = f".vtsweep-write-test-{uuid.uuid4().hex[:8]}"
    storage.write(name, b"")
    storage.remove(name)
    if storage.is_local:
        free = shutil.disk_usage(Path(storage.path(""))).free
        if free < needed:
            raise StorageError(
                f"storage {storage.uri!r}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; "
                "use storage=DIR on a larger disk, fewer images, or capture.keep_features=false"
            )
