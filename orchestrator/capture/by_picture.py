"""Metrics of each image of questions about several, beside those of all their visual tokens together.

Shapes: B questions of a pass, N tokens of the states, V visual tokens of the question that has most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from orchestrator.capture.pass_record import PassRecord, Pending
from orchestrator.capture.recorder import Recorder
from orchestrator.capture.tables import PictureKey
from orchestrator.capture.taps import State
from orchestrator.config import CaptureConfig
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.sequence import SequenceAdapter


class ByPicture:
    """Receives the states of one pass, as `Recorder` does, and measures the tokens of each image alone.

    States of the vision encoder are left out: its patches are no tokens of the prompt.

    Args:
        make: makes the recorder of the images of one number, the first of each question, say.
    """

    def __init__(self, adapter: Adapter, batch: Batch, make: Callable[[], Recorder]) -> None:
        assert isinstance(adapter, SequenceAdapter), "only these take several images"
        self.of = pad_sequence(adapter.image_of_tokens(batch), batch_first=True, padding_value=-1)
        self.recorders = [make() for _ in range(int(batch["n_images"].max()))]
        self._masks: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, state: State) -> None:
        if state.vision is None or state.tap == "encoder":
            return
        for picture, recorder in enumerate(self.recorders):
            recorder(replace(state, vision=self._mask(state.vision, picture), text=None))

    def _mask(self, vision: Bool[Tensor, "B N"], picture: int) -> Bool[Tensor, "B N"]:
        """One and the same mask for all layers that share `vision`, which is kept so that its id stays its own."""
        key = id(vision), picture
        if key not in self._masks:
            of = self.of.gather(1, (vision.cumsum(1) - 1).clamp(min=0))
            self._masks[key] = vision, vision & (of == picture)
        return self._masks[key][1]

    def launch(self) -> list[Pending]:
        """Start the copies to the host, one an image number."""
        return [recorder.launch() for recorder in self.recorders]


def picture_rows(records: Sequence[PassRecord], row: int) -> dict[PictureKey, tuple[int, np.ndarray]]:
    """Number of tokens and metrics of each image of question `row` of a pass; images that it does not have are absent.

    Args:
        records: of the first images, the second ones, and so on.
    """
    found: dict[PictureKey, tuple[int, np.ndarray]] = {}
    for picture, record in enumerate(records):
        for one in record.rows:
            if n := int(one.n_tokens[row]):
                found[picture, one.tap, one.layer] = n, one.values[:, row]
    return found


def recorder_maker(
    config: CaptureConfig, metrics: Sequence[str], quantiles: np.ndarray, n_layers: Mapping[str, int]
) -> Callable[[], Recorder]:
    """What makes a recorder of metrics alone."""
    alone = config.model_copy(update={"keep_features": False})
    return lambda: Recorder(alone, metrics, quantiles, n_layers)
