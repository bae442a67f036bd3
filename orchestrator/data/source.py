"""Image sources behind one protocol: scenes, COCO, a folder of images, question files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from orchestrator.config import CocoConfig, FolderConfig, QuestionsConfig, ScenesConfig
from orchestrator.data.attributes import DESIGN_ATTRIBUTES, SCENE_ATTRIBUTES, Kind, hidden_share, scene_attributes
from orchestrator.data.coco import open_coco
from orchestrator.data.design import DERIVED, FACTORS, cell_of, check_design
from orchestrator.data.designed import make_designed_scene
from orchestrator.data.files.source import open_questions
from orchestrator.data.folder import open_folder
from orchestrator.data.pixel_source import with_pixels
from orchestrator.data.render import render
from orchestrator.data.sample import Sample, Source
from orchestrator.data.scenes import Scene, check_scenes, make_scene
from orchestrator.errors import ConfigError, DataError, VtsweepError

SCENES_VERSION = 1
"""Incremented whenever the same configuration gives different scenes or pixels; part of the fingerprint."""


@dataclass(frozen=True)
class _SceneIds(Sequence[str]):
    """Lazily computed ids: 10^8 scenes need no memory."""

    seed: int
    indices: range

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return _SceneIds(self.seed, self.indices[place])
        return f"scene-{self.seed}-{self.indices[place]:07d}"


class ScenesSource:
    """Synthetic scenes as a source, drawn from ranges or by a design.

    A design's attributes are its factors with several levels and the derived attributes; factors with one level are
    constant and left out. Raises ConfigError for a configuration that cannot be drawn.
    """

    name = "scenes"

    def __init__(self, config: ScenesConfig) -> None:
        self.config = config
        self.ids: Sequence[str] = _SceneIds(config.seed, range(config.n_images))
        kinds = {key: kind for key, (kind, _) in SCENE_ATTRIBUTES.items()}
        self.attribute_roles: dict[str, str] = {}
        if config.design is None:
            check_scenes(config)
        else:
            varied = check_design(config).factors
            kinds |= {key: kind for key, (kind, _) in DESIGN_ATTRIBUTES.items()}
            kinds = {key: kind for key, kind in kinds.items() if key in varied or key not in FACTORS}
            self.attribute_roles = dict.fromkeys(DERIVED, "derived") | dict.fromkeys(varied, "factor")
        self.attribute_kinds: Mapping[str, Kind] = kinds

    def __len__(self) -> int:
        return self.config.n_images

    def attributes(self, index: int) -> Mapping[str, Any]:
        return self._attributes(self._scene(index))

    def load(self, index: int) -> Sample:
        scene = self._scene(index)
        return Sample(self.ids[index], render(scene), self._attributes(scene), scene=scene)

    def fingerprint(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude={"max_rejected_fraction"})
        return {**settings, "version": SCENES_VERSION}

    def _scene(self, index: int) -> Scene:
        return (make_scene if self.config.design is None else make_designed_scene)(self.config, index)

    def _attributes(self, scene: Scene) -> Mapping[str, Any]:
        attributes = scene_attributes(scene)
        if self.config.design is None:
            return attributes
        # levels are exact up to rounding; rounding errors would break ties in ranks
        attributes |= {key: level for key, level in cell_of(self.config, scene.index).items() if key != "occlusion"}
        if "occlusion" in self.attribute_kinds:
            attributes["occlusion"] = hidden_share(scene.objects)
        return {key: attributes[key] for key in self.attribute_kinds}


def make_source(config: ScenesConfig | CocoConfig | FolderConfig | QuestionsConfig) -> Source:
    """Open and check a source; raises ConfigError or DataError before work starts if it is missing or malformed."""
    if isinstance(config, ScenesConfig):
        return ScenesSource(config)
    try:
        source = _open(config)
    except Exception as error:  # object-store clients have their own exception types: no credentials, no endpoint
        if isinstance(error, VtsweepError) or "://" not in config.root:
            raise
        raise DataError(f"data.root {config.root!r} cannot be read: {error}") from error
    return with_pixels(source, config.pixels) if config.pixels else source


def _open(config: CocoConfig | FolderConfig | QuestionsConfig) -> Source:
    if isinstance(config, CocoConfig):
        return open_coco(config)
    if isinstance(config, QuestionsConfig):
        return open_questions(config)
    if isinstance(config, FolderConfig):
        return open_folder(config)
    raise ConfigError(f"data: expected scenes, coco, folder or questions settings, found {type(config).__name__}")
