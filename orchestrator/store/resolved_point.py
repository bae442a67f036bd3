"""One point of a study with all machine-dependent values resolved; made once, before work starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage


@dataclass(frozen=True)
class ResolvedPoint:
    """A validated point, resolved on this machine; made by `study.resolve`, passed to every stage.

    Stage digests are computed from this object only, without reading files, so that a worker that receives it finds the
    same directories as the driver.

    Args:
        run: the settings; `model.dtype` is a precision and never `auto`, `model.revision` a commit if one is known.
        storage: storage of the stages, absolute.
        model: identity of the model: content or commit, precision, prompt, adapter, packages.
        data: identity of the images of `run.data`.
        held_out: identity of the images of held-out questions; None if they are scenes, or without fine-tuning.
        ablated: identity of the images of an ablation; None without ablation.
        n_images: images of `run.data`.
        attribute_kinds: attribute -> kind of those images.
        packages: kind of plug-in (`metrics`, `solvers`, `selectors`) -> name -> package and version that registers it.
        label: name of the point in tables and messages.
        axes: values of the study's axes at this point.
        stages: stage name -> its directory; `baseline` is the base model's measurement that trials share.
    """

    run: RunConfig
    storage: Storage
    model: Mapping[str, str]
    data: Mapping[str, Any]
    held_out: Mapping[str, Any] | None = None
    ablated: Mapping[str, Any] | None = None
    n_images: int = 0
    attribute_kinds: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    label: str = ""
    axes: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Stage] = field(default_factory=dict)

    def with_stages(self, *stages: Stage) -> ResolvedPoint:
        """A copy with these stages added or replaced."""
        return replace(self, stages={**self.stages, **{stage.name: stage for stage in stages}})

    def is_done(self, name: str) -> bool:
        """Whether a stage and what it reads are done: a trial whose base model was taken back is not."""
        stage = self.stages[name]
        return all(one.is_done() for one in (stage, *(self.stages[k] for k in stage.inputs if k in self.stages)))

    def packages_of(self, kind: str, names: Iterable[str] | None = None) -> dict[str, str]:
        """Package and version of each of `names` (all if None) that another package registers."""
        packages = self.packages.get(kind, {})
        return {name: packages[name] for name in (packages if names is None else names) if name in packages}

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, for a worker's configuration."""
        stages = {name: {"what": stage.what, "inputs": stage.inputs} for name, stage in self.stages.items()}
        plain = {key: value for key, value in vars(self).items() if key not in ("run", "storage", "stages")}
        return {**plain, "run": self.run.model_dump(mode="json"), "storage": self.storage.uri, "stages": stages}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ResolvedPoint:
        """The inverse of `as_json`."""
        storage = Storage(values["storage"])
        stages = {name: Stage(storage, name, **fields) for name, fields in values["stages"].items()}
        run = RunConfig.model_validate(values["run"])
        return cls(**{**values, "run": run, "storage": storage, "stages": stages})


def distinct(points: Sequence[ResolvedPoint], stage: str) -> list[ResolvedPoint]:
    """The first point of each distinct directory of `stage`, so that equal work is done once."""
    return list({point.stages[stage].digest: point for point in reversed(points)}.values())[::-1]
