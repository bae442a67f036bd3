"""Computes the tables and arrays of a shard from its images: a plain Python object without Ray or storage.

Shapes: B images of a forward pass, P positions, D width.
"""

from __future__ import annotations

import inspect
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.capture import positions
from orchestrator.capture.by_picture import ByPicture, picture_rows, recorder_maker
from orchestrator.capture.kept import Kept, token_maps
from orchestrator.capture.loading import Loaded, describe
from orchestrator.capture.pass_record import PassRecord, Pending
from orchestrator.capture.preparing import Preparer
from orchestrator.capture.recorder import Recorder
from orchestrator.capture.shard_result import ShardResult
from orchestrator.capture.tables import images_table, metrics_table, picture_table, rejected_table
from orchestrator.capture.taps import State, Taps
from orchestrator.capture.vision_quantiles import vision_quantiles
from orchestrator.compression.registry import chosen_names
from orchestrator.config import RunConfig
from orchestrator.data.sample import N_IMAGES
from orchestrator.errors import ModelError
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.box_tokens import object_and_background
from orchestrator.models.loading import load_adapter
from orchestrator.models.memory import Limit, TokenBudget, pack, padded_tokens, retry_with_smaller_batch
from orchestrator.models.planning import vision_positions
from orchestrator.models.tap_names import chosen_taps


@dataclass
class _Examples:
    """Model inputs of a shard's images by index, with the reasons why some have none."""

    inputs: dict[int, Batch] = field(default_factory=dict)
    classes: dict[int, Tensor] = field(default_factory=dict)
    """Vision tokens of objects and of background, bool (2, V), with `capture.object_positions`."""
    rejected: dict[int, str] = field(default_factory=dict)


class CaptureWorker:
    """A model with taps. Thread-safe: the forward pass is locked, preprocessing and I/O overlap.

    Args:
        run: the point's configuration; `model.dtype` should be resolved, so that all workers of a stage use the same.
        attribute_kinds: attribute name -> kind, which sets the dtype of its column in `images`.
        device: device of the model; None for the GPU if there is one.
        threads: torch threads; None for torch's default.
        adapter: a loaded model, used instead of `run.model`.
    """

    def __init__(
        self,
        run: RunConfig,
        attribute_kinds: Mapping[str, str],
        *,
        device: str | None = None,
        threads: int | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.run, self.attribute_kinds = run, attribute_kinds
        self.adapter = adapter or load_adapter(
            run.model, device or pick_device(), run.how.device_map, run.how.weights_cache
        )
        self.prepare = Preparer(self.adapter, run.capture.prompt)
        self.metrics = chosen_names(run.capture.metrics, run.capture.spectrum)
        self.quantiles = vision_quantiles(vision_positions(run), run.capture.seed)
        self.select = select_taps(self.adapter, run)
        # checks names and layers before the first image
        self.n_layers = {tap: len(layers) for tap, layers in Taps(self.adapter, self.select).select.items()}
        self.limit = Limit()
        self.budget = TokenBudget(self.adapter.device, _first_budget(run))
        self._lock = threading.Lock()
        parameters = inspect.signature(self.adapter.model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    # ------------------------------------------------------------ a shard

    def shard(self, images: Sequence[Loaded]) -> ShardResult:
        """Capture the images of a shard, in batches of equal shapes; unusable images are recorded with their reason."""
        prepared = self._examples(images)
        examples, classes, rejected = prepared.inputs, prepared.classes, prepared.rejected
        kept: dict[int, Kept] = {}
        names: dict[str, list[str]] = {}
        in_flight: deque[tuple[Sequence[int], list[Pending]]] = deque()

        def unpack(chunk: Sequence[int], pending: list[Pending]) -> None:
            record, *apart = [one.result() for one in pending]
            names.update(record.position_names)
            self._unpack(record, apart, chunk, kept, rejected)
            for index in set(chunk) & kept.keys():
                kept[index].grid = examples[index]["vision_grid"][0].numpy().astype(np.int16)

        def work(chunk: Sequence[int]) -> None:
            shown = [classes[index] for index in chunk] if classes else None
            pending = self._pass([examples[index] for index in chunk], shown)
            while in_flight:  # the copy of the previous pass has overlapped with this pass
                unpack(*in_flight.popleft())
            in_flight.append((chunk, pending))

        def too_large(index: int) -> None:
            rejected[index] = "out of memory with this image alone"

        for keys in self._buckets(examples):
            self._run(examples, keys, work, too_large)
        while in_flight:
            unpack(*in_flight.popleft())
        return self._result([item for item in images if item.index in kept], images, kept, names, rejected)

    def _examples(self, images: Sequence[Loaded]) -> _Examples:
        """The model's inputs of a shard; an image that cannot be prepared is recorded with the reason."""
        found = _Examples(rejected={item.index: item.reason or "no image" for item in images if item.image is None})
        for item in images:
            if item.image is None:
                continue
            try:
                example = self.prepare(item.pictures, item.prompt)
                if self.run.capture.object_positions:
                    found.classes[item.index] = self._classes(item, example)
                found.inputs[item.index] = example
            except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
                found.rejected[item.index] = f"cannot be prepared: {describe(error)}"
        return found

    def _classes(self, item: Loaded, example: Batch) -> Tensor:
        """Vision tokens of objects and of background, bool (2, V)."""
        if item.boxes is None:
            raise ModelError(f"{item.image_id}: boxes of its objects are not known; object_positions needs them")
        edges = torch.from_numpy(item.boxes.edges.astype(np.float32))
        return object_and_background(self.adapter, self.adapter.vision_grid(example)[0], edges, item.boxes.size)

    def _buckets(self, examples: dict[int, Batch]) -> list[list[int]]:
        """Examples that may share a pass: equal shapes; with `how.max_batch_tokens`, equal keys and padding."""
        buckets: dict[Any, list[int]] = defaultdict(list)
        mixed = self.run.how.max_batch_tokens is not None
        for index, example in examples.items():
            shapes = () if mixed else tuple((key, tuple(example[key].shape)) for key in sorted(example))
            buckets[self.adapter.bucket(example), shapes].append(index)
        return list(buckets.values())

    def _run(
        self,
        examples: Mapping[int, Batch],
        keys: Sequence[int],
        work: Callable[[Sequence[int]], None],
        too_large: Callable[[int], None],
    ) -> None:
        """Call `work` on batches of a bucket; with `max_batch_tokens: auto` the first pass sets their size."""
        left = list(keys)
        while left:
            budget = self.budget.most
            batches = pack(examples, left, self.run.how.batch_size, budget)
            for done, batch in enumerate(batches):
                retry_with_smaller_batch(
                    [batch],
                    work,
                    cost=lambda chunk: padded_tokens([examples[index] for index in chunk]),
                    limit=self.limit,
                    too_large=too_large,
                )
                if self.budget.most != budget:
                    left = [index for rest in batches[done + 1 :] for index in rest]
                    break
            else:
                left = []

    def _pass(self, examples: list[Batch], classes: Sequence[Tensor] | None = None) -> list[Pending]:
        """One forward pass with taps, one at a time: its record on its way, and one for each image of several."""
        batch = self.adapter.collate(examples)
        recorder = Recorder(
            self.run.capture, self.metrics, self.quantiles, self.n_layers, self.run.data.source == "questions", classes
        )
        receivers: list[Recorder | ByPicture] = [recorder]
        if "n_images" in batch:
            make = recorder_maker(self.run.capture, self.metrics, self.quantiles, self.n_layers)
            receivers.append(ByPicture(self.adapter, batch, make))

        def receive(state: State) -> None:
            for receiver in receivers:
                receiver(state)

        with self._lock, torch.inference_mode(), self.budget:
            with Taps(self.adapter, self.select, on_state=receive):
                self.adapter.run(batch, **self._options)
            pending = [recorder.launch()]
            for receiver in receivers[1:]:
                assert isinstance(receiver, ByPicture)
                pending += receiver.launch()
            self.budget.measured(padded_tokens(examples))
        return pending

    def _unpack(
        self,
        record: PassRecord,
        apart: Sequence[PassRecord],
        chunk: Sequence[int],
        kept: dict[int, Kept],
        rejected: dict[int, str],
    ) -> None:
        for row, index in enumerate(chunk):
            if row in record.broken:
                rejected[index] = record.broken[row]
                continue
            of_image = kept[index] = Kept(apart=picture_rows(apart, row))
            for metrics in record.rows:
                key = (metrics.tap, metrics.layer, metrics.group)
                of_image.metrics[key] = (int(metrics.n_tokens[row]), metrics.values[:, row])
            for tap, layers in record.features.items():
                of_image.features[tap] = {layer: states[row] for layer, states in layers.items()}
            for tap, norms in record.token_norms.items():
                of_image.token_norms[tap] = {layer: values[row] for layer, values in norms.items()}

    # ------------------------------------------------------------ tables and arrays

    def _result(
        self,
        captured: Sequence[Loaded],
        images: Sequence[Loaded],
        kept: dict[int, Kept],
        names: dict[str, list[str]],
        rejected: dict[int, str],
    ) -> ShardResult:
        tables = {
            "images": images_table(captured, self.run.data.source, self.attribute_kinds),
            "layer_metrics": metrics_table(
                [(item.image_id, kept[item.index].metrics) for item in captured], self.metrics
            ),
            "rejected": rejected_table(images, rejected),
        }
        if N_IMAGES in self.attribute_kinds:
            tables["picture_metrics"] = picture_table(
                [(item.image_id, kept[item.index].apart) for item in captured], self.metrics
            )
        arrays: dict[str, np.ndarray] = {}
        described: dict[str, Any] = {}
        for tap in names if captured else ():
            layers = sorted(kept[captured[0].index].features[tap])
            stacked = np.stack(
                [np.stack([kept[item.index].features[tap][layer] for layer in layers]) for item in captured]
            )
            arrays[f"features/{tap}"], scales = positions.to_float16(stacked)
            if scales is not None:
                arrays[f"feature_scales/{tap}"] = scales
            described[tap] = {"layers": layers, "positions": names[tap], "scaled": scales is not None}
        maps, extra = token_maps([kept[item.index] for item in captured])
        return ShardResult(tables, arrays | maps, {"features": described, **extra}, len(captured), len(rejected))


def select_taps(adapter: Adapter, run: RunConfig) -> dict[str, tuple[int, ...] | None]:
    """Taps and layers in the form of `Taps(select=...)`; `capture.layers` applies to the decoder only."""
    taps = chosen_taps(adapter.vision_kind, run.capture.taps)
    return {tap: run.capture.layers if tap == "decoder" else None for tap in taps}


def pick_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _first_budget(run: RunConfig) -> float:
    """Token limit of the first pass: none, the configured one, or (`auto` on a GPU) one example, to measure."""
    tokens = run.how.max_batch_tokens
    if tokens is None:
        return float("inf")
    return 1 if tokens == "auto" and torch.cuda.is_available() else float("inf") if tokens == "auto" else tokens
