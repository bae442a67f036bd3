"""Token selection applied to a batch by a method of the registry; and downsampling of the image."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.ablate.selectors.check import check_needs
from orchestrator.ablate.selectors.kinds import Request, Selector, Settings
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
    """The reduction of a batch by a method; `adapter.reduce` applies it.

    If a method needs attention of all layers before the decoder, this function runs a forward pass for it and records
    its time in `seconds_before`.

    Args:
        layers: depths at which tokens are deleted, ascending.
        shares: share of each image's tokens that is left from each depth on, `shares[depth][row]`.
        seeds: seed sequence of each row, for random methods.
        settings: settings that differ from the defaults, by method name.

    Raises:
        ConfigError: there is no such method or setting.
        ModelError: the model does not provide an input of the method.
    """
    selector = get_selector(method) if isinstance(method, str) else method
    needs: frozenset[Need] = frozenset().union(*(selector.needs_at(layer) for layer in layers))
    check_needs(selector, layers, str(adapter.config.model_type), getattr(adapter, "cross_layers", ()))
    chosen = settings_of(selector, settings or {})
    reduction = Reduction(tuple(layers), shares, _choice(selector, chosen, seeds), needs)
    if needs & {"encoder", "encoder_last"}:
        reduction.make_encoder_reading = _read_encoder("encoder_last" in needs)
    if "full_pass" in needs:
        started = time.perf_counter()
        scores, counts = attention_to_vision(adapter, batch), adapter.n_vision(batch).tolist()
        reduction.given = [row[:n] for row, n in zip(scores, counts, strict=True)]
        reduction.seconds_before = time.perf_counter() - started
    return reduction


def _choice(selector: Selector, settings: Settings, seeds: Sequence[Sequence[int]] | None) -> Choose:
    function = selector.function()

    def choose(seen: Seen, n: int, row: int) -> Kept:
        kept = function(Request(seen, n, settings, tuple(seeds[row]) if seeds is not None else (row,)))
        return kept if isinstance(kept, Kept) else Kept(kept[:n])

    return choose


def _read_encoder(last: bool) -> Callable[[Any, Batch], EncoderReading]:
    return lambda adapter, batch: EncoderReading(adapter, batch, last=last)


def seen_size(example: Batch) -> tuple[int, int] | None:
    """Input height and width, px, of a model of fixed resolution; None for any other model."""
    pixels = example.get("pixel_values")
    n_images = int(example["n_images"][0]) if "n_images" in example else 1
    if pixels is None or pixels.ndim < 4 or pixels.shape[-3] != 3 or int(np.prod(pixels.shape[:-3])) != n_images:
        return None
    return int(pixels.shape[-2]), int(pixels.shape[-1])


def shrink(image: np.ndarray, deleted_share: float, seen: tuple[int, int] | None = None) -> np.ndarray:
    """The image downsampled to a share `1 - deleted_share` of the model's input pixels, by area averaging.

    A model of native resolution then has that share of its visual tokens. A model of fixed resolution upsamples the
    image again: it has all its tokens, with the detail of that share of them, and saves no time.

    Args:
        image: uint8 (H, W, 3).
        seen: from `seen_size`.
    """
    import cv2

    sides = image.shape[:2] if seen is None else np.minimum(image.shape[:2], seen)
    height, width = (max(1, round(side * float(np.sqrt(1.0 - deleted_share)))) for side in sides)
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
