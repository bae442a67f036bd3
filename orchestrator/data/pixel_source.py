"""A source whose samples also have attributes computed from their pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.data.attributes import Kind
from orchestrator.data.pixels import PIXEL_ATTRIBUTES, VERSION, pixel_attributes
from orchestrator.data.sample import N_IMAGES, Sample, Source
from orchestrator.errors import ConfigError, did_you_mean


class PixelSource:
    """Adds `names` of `PIXEL_ATTRIBUTES` to every sample of a source. They are known once the image is loaded."""

    def __init__(self, source: Source, names: Sequence[str]) -> None:
        self.source, self.names = source, tuple(names)
        self.name, self.ids = source.name, source.ids
        several = N_IMAGES in source.attribute_kinds
        kinds: dict[str, Kind] = {name: "continuous" if several else PIXEL_ATTRIBUTES[name][0] for name in names}
        self.attribute_kinds: Mapping[str, Kind] = {**source.attribute_kinds, **kinds}
        self.missing_spellings: dict[str, dict[str, int]] = getattr(source, "missing_spellings", {})

    def __len__(self) -> int:
        return len(self.source)

    def attributes(self, index: int) -> Mapping[str, Any]:
        return self.source.attributes(index)

    def load(self, index: int) -> Sample:
        sample = self.source.load(index)
        each = [pixel_attributes(image) for image in (sample.image, *sample.more)]
        # of several images their mean, which need not be a whole number
        values = {name: sum(one[name] for one in each) / len(each) for name in self.names} if sample.more else each[0]
        return replace(sample, attributes={**sample.attributes, **{name: values[name] for name in self.names}})

    def fingerprint(self) -> dict[str, Any]:
        return {**self.source.fingerprint(), "pixels": list(self.names), "pixels_version": VERSION}


def with_pixels(source: Source, names: Sequence[str]) -> Source:
    """The source with attributes from pixels; ConfigError for an unknown name or one that the source has itself."""
    for name in names:
        if name not in PIXEL_ATTRIBUTES:
            raise ConfigError(f"data.pixels: no attribute {name!r}.{did_you_mean(name, PIXEL_ATTRIBUTES)}")
        if name in source.attribute_kinds:
            raise ConfigError(f"data.pixels: the data have an attribute {name!r} already")
    return PixelSource(source, names)
