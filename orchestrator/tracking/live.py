"""Live progress of stages in MLflow: a thread of the driver reads their progress and logs it.

Trials write progress to a file of their stage folder, other stages report it in the driver; workers do not use MLflow.
Results are logged from finished stage folders into the same runs, independently of the progress shown.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread

from orchestrator.config import StageName
from orchestrator.progress import Progress
from orchestrator.report.summaries import run_params, thinned
from orchestrator.store.live_file import read_live
from orchestrator.store.resolved_point import ResolvedPoint
from orchestrator.store.study_record import Study, View
from orchestrator.tracking.content import Beat
from orchestrator.tracking.entries import view_entry
from orchestrator.tracking.tracker import Tracker

FIRST_S, EVERY_S, LONGEST_S = 2.0, 4.0, 300.0
"""Seconds until the first poll, between polls, and the longest interval while MLflow cannot be reached."""
_JOIN_S = 60.0
_ENDED = ("pruned", "diverged", "failed")
"""States of samples without a finished stage folder."""


@contextmanager
def streamed(
    tracker: Tracker, study: Study, name: StageName, digests: Collection[str]
) -> Iterator[Callable[[ResolvedPoint, str], None]]:
    """Log the progress of the study's unfinished stages of one kind during a `with` block.

    Yields a function to report a search's samples, which are not in the study's record until they are done: it takes
    the sample's point and `running` or its final state. If the block raises, the runs of unfinished stages are marked
    stopped or failed; the next attempt continues them.
    """
    if not digests or not tracker.is_streamed:
        yield _unwatched
        return
    follower = _Follower(tracker, study, name, set(digests))
    follower.start()
    try:
        yield follower.watch
    except BaseException as error:
        follower.end(None if isinstance(error, Exception) else "stopped")
        raise
    follower.end(None)


def _unwatched(point: ResolvedPoint, state: str) -> None:
    """The callback without live progress."""


class _Follower(Thread):
    """Logs the progress of its stages, and the results of each finished one."""

    def __init__(self, tracker: Tracker, study: Study, name: StageName, left: set[str]) -> None:
        super().__init__(name=f"mlflow {name}", daemon=True)
        self.tracker, self.study, self.kind, self.left = tracker, study, name, left
        self._samples: dict[str, tuple[View, str]] = {}
        self._stop_asked = Event()

    def watch(self, point: ResolvedPoint, state: str) -> None:
        """Record that a search's sample started, or ended as `state`; the next poll logs it."""
        stage = point.stages[self.kind]
        self._samples[stage.digest] = View(point.label, point.run, stage, {}), state

    def run(self) -> None:
        pause = FIRST_S
        while not self._stop_asked.wait(pause):
            pause = EVERY_S if self.look() else min(LONGEST_S, 2 * max(pause, EVERY_S))

    def look(self) -> bool:
        """One poll; False if storage or MLflow did not respond."""
        try:
            begun = self.left & set(self.study.storage.files(self.kind))
            samples = dict(self._samples)
            views = [*self.study.views(self.kind, begun), *(view for view, _ in samples.values())]
            finished = [view for view in views if view.stage.is_done()]
            beats = [(view, beat_of(self.kind, view)) for view in views if view not in finished]
            if finished and not self.tracker.log(view_entry(self.study, self.kind, view) for view in finished).waiting:
                self._forget(view.stage.digest for view in finished)
            streamed_beats = [
                (view_entry(self.study, self.kind, view), beat) for view, beat in beats if beat is not None
            ]
            return self.tracker.stream(streamed_beats) and all(self._end_samples(samples, state) for state in _ENDED)
        except Exception:  # errors of tracking must not end a study
            return False

    def _end_samples(self, samples: Mapping[str, tuple[View, str]], state: str) -> bool:
        digests = [digest for digest, (_, ended) in samples.items() if ended == state]
        reached = not digests or self.tracker.end_streams(state, digests)
        if reached:
            self._forget(digests)
        return reached

    def _forget(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self.left.discard(digest)
            self._samples.pop(digest, None)

    def end(self, state: str | None) -> None:
        """Stop polling; end runs of unfinished stages as `state`, or as failed."""
        self._stop_asked.set()
        self.join(_JOIN_S)
        if state is None:
            self.look()  # stages finished since the last poll
        self.tracker.end_streams(state or "failed")


def beat_of(name: StageName, view: View) -> Beat | None:
    """Progress of an unfinished stage; None if it reports none."""
    if name != "finetune":
        reading = Progress.reading(view.stage.digest)
        if reading is None:
            return None
        total = f" of {reading.total}" if reading.total else ""
        state = f"{reading.done}{total} {reading.unit}, {reading.rate:.3g} a second"
        values = {reading.unit: float(reading.done), f"{reading.unit}_per_second": reading.rate}
        curves = {key: [(reading.done, value)] for key, value in values.items()} | dict(reading.values)
        return Beat(state, run_params(name, view.run), {f"live/{key}": curve for key, curve in curves.items()})
    live = read_live(view.stage.store)
    if live is None:
        return None
    n_steps = view.run.finetune.n_steps
    state = live.state
    if state == "training" and live.losses:
        state = f"training, step {live.losses[-1][0]} of {n_steps}"
    curves = {"loss": thinned(live.losses, n_steps), **{key: [(0, value)] for key, value in live.metrics.items()}}
    return Beat(state, run_params(name, view.run), curves)
