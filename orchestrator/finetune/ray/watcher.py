"""The Tune callback of an experiment: outcomes and failures of trials, progress, and a limit on waiting."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from orchestrator import interrupt
from orchestrator.errors import ResourceError
from orchestrator.finetune.ray.entry import Entry, read_entry
from orchestrator.finetune.ray.search import SampleRecord, SearchFolder, State, Watch, sample_point, unwatched
from orchestrator.progress import Progress


def make_watcher(
    progress: Progress | None,
    patience: float,
    folder: SearchFolder | None,
    numbers: Sequence[int] = (),
    watch: Watch = unwatched,
) -> Any:
    """Tune callback: records outcomes and failures, shows progress, and raises if no trial can run any more."""
    from ray.tune import Callback

    class Watcher(Callback):
        # What the methods close over is pickled with their class: the rest is given as attributes.
        def __init__(self, shown: Progress | None, folder: SearchFolder | None, free: list[int], watch: Watch) -> None:
            self.failures: dict[str, str] = {}
            self.rungs: dict[str, list[tuple[int, float]]] = {}
            self.shown, self.folder, self.free = shown, folder, free
            self.watch = watch
            self.numbers: dict[str, int] = {}

        def __getstate__(self) -> dict[str, Any]:  # Tune pickles its callbacks into its own temporary folder
            return {}

        def setup(self, *args: Any, **info: Any) -> None:
            self.last_seen = time.monotonic()

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            interrupt.check()
            now = time.monotonic()
            if any(trial.status == "RUNNING" for trial in trials) or all(trial.is_finished() for trial in trials):
                self.last_seen = now
            elif now - self.last_seen > patience:
                raise ResourceError(
                    f"no fine-tuning trial could run for {patience:.0f} s (how.no_progress_timeout_s): the nodes are "
                    "lost or full. Finished trials are kept; run the same command again to resume."
                )

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._tell(trial, read_entry(trial.config), "running")

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if not result.get("end"):
                self.rungs.setdefault(trial.trial_id, []).append((int(result["step"]), float(result["loss"])))

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            entry, last = read_entry(trial.config), trial.last_result or {}
            # A trial without a final report was stopped by the scheduler; an interrupted one does not get here.
            state: Any = last.get("end") or "pruned"
            if state == "failed" or (state == "diverged" and not entry.point):
                self.failures[entry.name] = str(last.get("reason"))
            elif entry.point and self.folder is not None:
                self._record(self.folder, entry, state, trial)
            self._tell(trial, entry, state)
            self._show(trials, entry)

        def _number(self, entry: Entry, trial: Any) -> int:
            """The number of a trial's sample; one whose values were proposed takes the next free one."""
            if entry.number >= 0:
                return entry.number
            if trial.trial_id not in self.numbers:
                self.numbers[trial.trial_id] = self.free.pop(0)
            return self.numbers[trial.trial_id]

        def _tell(self, trial: Any, entry: Entry, state: str) -> None:
            if entry.point:
                self.watch(sample_point(entry.resolved, self._number(entry, trial), {}), state)

        def _record(self, folder: SearchFolder, entry: Entry, state: State, trial: Any) -> None:
            number = self._number(entry, trial)
            objective = float((trial.last_result or {}).get("score") or 0.0)
            rungs = self.rungs.get(trial.trial_id, [])
            folder.write(
                SampleRecord(
                    point=entry.point, number=number, values=entry.values, state=state, score=objective, rungs=rungs
                )
            )

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            entry = read_entry(trial.config)
            self.failures[entry.name] = _last_line(trial)
            self._tell(trial, entry, "failed")
            self._show(trials, entry)

        def _show(self, trials: list[Any], entry: Entry) -> None:
            if self.shown is not None:
                self.shown.total = max(
                    self.shown.total or 0, len(trials)
                )  # Tune creates trials as resources become free
                self.shown.advance(note=entry.name)

    return Watcher(progress, folder, list(numbers), watch)


def _last_line(trial: Any) -> str:
    """The last line of a trial's error."""
    try:
        text = str(trial.get_error() or "")
    except Exception:  # Tune's error file may be lost with its node
        text = ""
    return (text.strip().splitlines() or ["it ended with an error"])[-1]
