"""Validated point -> `ResolvedPoint`: the only place where models and data are identified and stages named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from orchestrator.ablate.questions import identify_images
from orchestrator.ablate.selectors.registry import ENTRY_POINT_GROUP as SELECTORS
from orchestrator.cluster.session import has_gpu
from orchestrator.compression.registry import ENTRY_POINT_GROUP as METRICS
from orchestrator.config import ModelConfig, RunConfig, StageName
from orchestrator.config.section import Section
from orchestrator.config.sweep import Point, Sweep
from orchestrator.data.sample import Source
from orchestrator.data.source import make_source
from orchestrator.finetune.finetune_stage import held_out_identity
from orchestrator.models.hub import pinned
from orchestrator.models.identity import fingerprint
from orchestrator.plugins import registered_by
from orchestrator.probes.user import ENTRY_POINT_GROUP as SOLVERS
from orchestrator.store.filesystem import Storage
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.study.stage_kinds import STAGE_KINDS, with_inputs

Found = TypeVar("Found")
PLUGINS = {"metrics": METRICS, "solvers": SOLVERS, "selectors": SELECTORS}
"""Kind of plug-in -> entry-point group, for plug-ins that are part of a stage's digest."""


class Resolver:
    """Resolves the points of one study; shared look-ups are cached."""

    def __init__(self, storage: Storage, stages: Sequence[StageName]) -> None:
        self.storage = Storage(storage.locate(""))
        self.stages = with_inputs(stages)
        self._model = _once(_model)
        self._source = _once(_source)
        self._has_gpu = _once(has_gpu)

    def point(self, point: Point) -> ResolvedPoint:
        """Resolve a point on this machine. Opens its data and identifies its weights; starts no work.

        Raises:
            VtsweepError: model or data are not available, or a stage does not support these settings.
        """
        run, dtype = point.run, point.run.model.dtype
        held_out = held_out_identity(run) if "finetune" in self.stages else None
        if dtype == "auto":
            dtype = "bfloat16" if self._has_gpu(run.how) else "float32"
        model, identity = self._model(run.model)
        model = model.model_copy(update={"dtype": dtype})
        source, data = self._source(run.data)
        run = run.model_copy(update={"model": model})
        resolved = ResolvedPoint(
            run,
            self.storage,
            {**identity, "dtype": dtype},
            data,
            held_out=held_out,
            ablated=identify_images(run) if "ablate" in self.stages else None,
            n_images=len(source),
            attribute_kinds=dict(source.attribute_kinds),
            packages={kind: registered_by(group) for kind, group in PLUGINS.items()},
            label=point.label,
            axes=dict(point.axes),
        )
        for name in self.stages:
            resolved = resolved.with_stages(*STAGE_KINDS[name].name_stages(resolved))
        return resolved


def resolve(sweep: Sweep, stages: Sequence[StageName]) -> list[ResolvedPoint]:
    """Every point of a study, resolved for `stages` and their inputs. Raises as `Resolver.point`."""
    resolver = Resolver(Storage(sweep.study.storage), stages)
    return [resolver.point(point) for point in sweep.points]


def resolve_run(run: RunConfig, storage: Storage, *stages: StageName) -> ResolvedPoint:
    """A single configuration, resolved for `stages` and their inputs."""
    return Resolver(storage, stages).point(Point(run, {}))


def _once(look_up: Callable[[Any], Found]) -> Callable[[Any], Found]:
    """Memoised `look_up`: called once for equal sections of settings."""
    cache: dict[str, Found] = {}

    def found(section: Section) -> Found:
        key = section.model_dump_json()
        if key not in cache:
            cache[key] = look_up(section)
        return cache[key]

    return found


def _model(config: ModelConfig) -> tuple[ModelConfig, dict[str, str]]:
    """The model at a commit of its repository, and its identity."""
    settled = pinned(config)
    return settled, fingerprint(settled)


def _source(config: Any) -> tuple[Source, dict[str, Any]]:
    source = make_source(config)
    return source, source.fingerprint()
