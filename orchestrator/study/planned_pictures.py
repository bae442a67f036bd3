"""What a model's processor does to the shape of pictures, and to the truths about them: counted before work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from orchestrator.config import RunConfig
from orchestrator.data.picture_sizes import asked_places, picture_sizes
from orchestrator.data.source import make_source
from orchestrator.errors import VtsweepError
from orchestrator.models.cuts import known_cut
from orchestrator.models.fitting import seen_window
from orchestrator.store.stage_folder import canonical_json

PARTLY = 0.999
"""Share of a box's area from which it counts as seen whole."""


@dataclass(frozen=True)
class PlannedPictures:
    """Pictures of one source as one model sees them; counts are of the pictures looked at."""

    model: str
    source: str
    fit: str
    """`model.fit`: pad, crop or stretch."""
    n_pictures: int
    n_changed: int
    """Of another shape than the processor takes: filled, squeezed, or cut off at their sides."""
    unseen_share: float
    """Mean share of a picture's area that is cut off."""
    n_places: int
    """Objects, boxes and points that truths speak of."""
    n_outside: int
    """Of these, cut off wholly."""
    n_partly: int
    """Of these, cut through."""
    n_moved: int
    """Of these, at other hundredths of the picture that the model sees: it was filled up or cut."""

    @property
    def words(self) -> str:
        """Return one line for the terminal."""
        start = f"{self.model} on {self.source}, model.fit {self.fit}: {self.n_changed} of {self.n_pictures} pictures"
        if self.fit == "stretch":
            return f"{start} are squeezed into the shape its processor takes; nothing is cut off or moved"
        if self.fit == "pad":
            moved = (
                f"; {self.n_moved} of {self.n_places} objects, boxes and points lie at other hundredths of it, in which"
                " places are trained and answered; tables and judgements are in hundredths of the picture itself"
                if self.n_places
                else ""
            )
            return f"{start} are filled up to the shape its processor takes; nothing is cut off{moved}"
        cut = (
            f" {self.n_outside} of {self.n_places} objects, boxes and points lie outside and {self.n_partly} are cut"
            " through; places are trained and answered in hundredths of what is seen, those outside at its edge;"
            if self.n_places
            else ""
        )
        return (
            f"{start} lose their sides, {100 * self.unseen_share:.0f} % of the area;{cut} questions and attributes"
            " speak of the whole picture"
        )

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def planned_pictures(runs: Sequence[RunConfig]) -> list[PlannedPictures]:
    """Return one row of each model that cuts pictures and each of its data; none where the data are not at hand."""
    planned: list[PlannedPictures] = []
    distinct = {
        canonical_json([run.model.model_dump(mode="json"), run.data.model_dump(mode="json")]): run for run in runs
    }
    for run in distinct.values():
        try:
            row = _planned(run)
        except VtsweepError:
            continue  # among the plan's problems already
        if row is not None:
            planned.append(row)
    return list(dict.fromkeys(planned))


def _planned(run: RunConfig) -> PlannedPictures | None:
    cut = known_cut(run.model)
    if cut is None:
        return None
    source = make_source(run.data)
    unseen, outside, partly, n_places, moved, changed = [], 0, 0, 0, 0, 0
    for index, (height, width) in picture_sizes(source).items():
        other_shape = height * cut[1] != width * cut[0]
        changed += other_shape
        top, left, bottom, right = seen_window(height, width, cut, run.model.fit)
        unseen.append(1 - (bottom - top) * (right - left) / (height * width))
        for x0, y0, x1, y1 in asked_places(source, index):
            n_places += 1
            moved += other_shape and run.model.fit != "stretch"
            across, down = min(x1, right) - max(x0, left), min(y1, bottom) - max(y0, top)
            if across < 0 or down < 0 or (across * down == 0 and x1 > x0 and y1 > y0):
                outside += 1
            elif across * down < PARTLY * (x1 - x0) * (y1 - y0):
                partly += 1
    if not unseen:
        return None
    share = float(np.mean(unseen))
    label = (run.model.label, run.data.source, run.model.fit)
    return PlannedPictures(*label, len(unseen), changed, share, n_places, outside, partly, moved)
