"""One point of a study with everything settled that its words leave open; made once, before work starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.config import RunConfig
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage


@dataclass(frozen=True)
class ResolvedPoint:
    """What a validated point means on this machine; `study.resolve` makes it and every stage takes it.

    Stage digests are computed from this object alone, without reading a file, so a worker that receives it names the
    same directories as the driver.

    Args:
        run: the settings; `model.dtype` is a precision and never `auto`, `model.revision` a commit where one is known.
        storage: where stages lie, absolute.
        model: what identifies the model: content or commit, precision, prompt, adapter, packages.
        data: what identifies the images of `run.data`.
        held_out: the same for the images of held-out questions; None where those are scenes, or nothing is fine-tuned.
        ablated: the same for the images that an ablation asks about; None where nothing is ablated.
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
        """The point with these stages added or replaced."""
        return replace(self, stages={**self.stages, **{stage.name: stage for stage in stages}})

    def packages_of(self, kind: str, names: Iterable[str] | None = None) -> dict[str, str]:
        """Package and version behind each of `names` (of all when absent) that another package registers."""
        known = self.packages.get(kind, {})
        return {name: known[name] for name in (known if names is None else names) if name in known}

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, for a worker's configuration."""
        stages = {name: {"what": stage.what, "inputs": stage.inputs} for name, stage in self.stages.items()}
        plain = {key: value for key, value in vars(self).items() if key not in ("run", "storage", "stages")}
        return {**plain, "run": self.run.model_dump(mode="json"), "storage": self.storage.uri, "stages": stages}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ResolvedPoint:
        """The inverse of `as_json`."""
        storage = Storage(values["storage"])
        stages = {name: Stage(storage, name, **found) for name, found in values["stages"].items()}
        run = RunConfig.model_validate(values["run"])
        return cls(**{**values, "run": run, "storage": storage, "stages": stages})


def distinct(points: Sequence[ResolvedPoint], stage: str) -> list[ResolvedPoint]:
    """The first point of each distinct directory of `stage`: equal work is done once, whatever the number of points."""
    return list({point.stages[stage].digest: point for point in reversed(points)}.values())[::-1]
