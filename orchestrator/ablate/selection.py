"""A method of the registry put on a batch; and the rival that shrinks the image instead."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.ablate.selectors.check import check_needs
from orchestrator.ablate.selectors.kinds import Selector, Settings, Wanted
from orchestrator.ablate.selectors.registry import get_selector, settings_of
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.encoder_reading import EncoderReading
from orchestrator.models.interventions import attention_to_vision
from orchestrator.models.needs import Need
from orchestrator.models.reduction import Choose, Kept, Reduction, Seen


def make_reduction(
    adapter: Adapter,
    batch: Batch,
    method: str | Selector,
    layers: Sequence[int],
    shares: Sequence[Sequence[float]],
    *,
    seeds: Sequence[Sequence[int]] | None = None,
    settings: Mapping[str, Settings] | None = None,
) -> Reduction:
    """A reduction of a batch by a method; `adapter.reduce` puts it there.

    Attention of all layers, where a method needs it before the decoder, is read here, in a pass of its own; its time is
    in `seconds_before`.

    Args:
        layers: depths at which tokens leave, ascending.
        shares: share of each image's tokens that is left from each depth on, `shares[depth][row]`.
        seeds: of each row, for methods that draw.
        settings: of methods by name, where they differ from the defaults.

    Raises:
        ConfigError: there is no such method or setting.
        ModelError: the model does not give what the method needs.
    """
    selector = get_selector(method) if isinstance(method, str) else method
    needs: frozenset[Need] = frozenset().union(*(selector.needs_at(layer) for layer in layers))
    check_needs(selector, layers, str(adapter.config.model_type), getattr(adapter, "cross_layers", ()))
    chosen = settings_of(selector, settings or {})
    found = Reduction(tuple(layers), shares, _choice(selector, chosen, seeds), needs)
    if needs & {"encoder", "encoder_last"}:
        found.make_encoder_reading = _read_encoder("encoder_last" in needs)
    if "full_pass" in needs:
        started = time.perf_counter()
        scores, counts = attention_to_vision(adapter, batch), adapter.n_vision(batch).tolist()
        found.given = [row[:n] for row, n in zip(scores, counts, strict=True)]
        found.seconds_before = time.perf_counter() - started
    return found


def _choice(selector: Selector, settings: Settings, seeds: Sequence[Sequence[int]] | None) -> Choose:
    function = selector.function()

    def choose(seen: Seen, n: int, row: int) -> Kept:
        kept = function(Wanted(seen, n, settings, tuple(seeds[row]) if seeds is not None else (row,)))
        return kept if isinstance(kept, Kept) else Kept(kept[:n])

    return choose


def _read_encoder(last: bool) -> Callable[[Any, Batch], EncoderReading]:
    return lambda adapter, batch: EncoderReading(adapter, batch, last=last)


def seen_size(example: Batch) -> tuple[int, int] | None:
    """Height and width, px, at which a model of fixed resolution sees a prepared image; None for any other model."""
    pixels = example.get("pixel_values")
    n_images = int(example["n_images"][0]) if "n_images" in example else 1
    if pixels is None or pixels.ndim < 4 or pixels.shape[-3] != 3 or int(np.prod(pixels.shape[:-3])) != n_images:
        return None
    return int(pixels.shape[-2]), int(pixels.shape[-1])


def shrink(image: np.ndarray, deleted_share: float, seen: tuple[int, int] | None = None) -> np.ndarray:
    """The image with a share `1 - deleted_share` of the pixels that the model would see, shrunk by area.

    A model of native resolution then has that share of its visual tokens. One of fixed resolution enlarges the image
    again: it has as many tokens as before, holding no more detail than that share of them could, and saves no time.

    Args:
        image: uint8 (H, W, 3).
        seen: from `seen_size`.
    """
    import cv2

    sides = image.shape[:2] if seen is None else np.minimum(image.shape[:2], seen)
    height, width = (max(1, round(side * float(np.sqrt(1.0 - deleted_share)))) for side in sides)
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
