"""Where images come from: scenes, COCO, a folder of one's own, or question files, all behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from orchestrator.config import CocoConfig, FolderConfig, QuestionsConfig, ScenesConfig
from orchestrator.data.attributes import SCENE_ATTRIBUTES, Kind, scene_attributes
from orchestrator.data.coco import open_coco
from orchestrator.data.files.source import open_questions
from orchestrator.data.folder import open_folder
from orchestrator.data.pixel_source import with_pixels
from orchestrator.data.render import render
from orchestrator.data.sample import Sample, Source
from orchestrator.data.scenes import check_scenes, make_scene
from orchestrator.errors import ConfigError, DataError, VtsweepError

SCENES_VERSION = 1
"""Raised whenever the same configuration gives other scenes or pixels; part of the fingerprint."""


@dataclass(frozen=True)
class _SceneIds(Sequence[str]):
    """Ids made when asked for: 10^8 scenes cost no memory."""

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
    """Synthetic scenes as a source. Raises ConfigError for a configuration that cannot be drawn."""

    name = "scenes"
    attribute_kinds: Mapping[str, Kind] = {key: kind for key, (kind, _) in SCENE_ATTRIBUTES.items()}

    def __init__(self, config: ScenesConfig) -> None:
        check_scenes(config)
        self.config = config
        self.ids: Sequence[str] = _SceneIds(config.seed, range(config.n_images))

    def __len__(self) -> int:
        return self.config.n_images

    def attributes(self, index: int) -> Mapping[str, Any]:
        return scene_attributes(make_scene(self.config, index))

    def load(self, index: int) -> Sample:
        scene = make_scene(self.config, index)
        return Sample(self.ids[index], render(scene), scene_attributes(scene), scene=scene)

    def fingerprint(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude={"max_rejected_fraction"})
        return {**settings, "version": SCENES_VERSION}


def make_source(config: ScenesConfig | CocoConfig | FolderConfig | QuestionsConfig) -> Source:
    """Open a source and check it: ConfigError or DataError before any work for what is missing or malformed."""
    if isinstance(config, ScenesConfig):
        return ScenesSource(config)
    try:
        source = _open(config)
    except Exception as error:  # clients of object stores have exceptions of their own: no credentials, no endpoint
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
