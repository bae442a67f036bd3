"""Progress of a running trial as one small file in its stage folder: written by its worker, read by the driver."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.errors import VtsweepError
from orchestrator.store.filesystem import Storage

LIVE_FILE = "live.json"


@dataclass(frozen=True)
class Live:
    """The last progress report of a trial's worker."""

    state: str
    losses: tuple[tuple[int, float], ...] = ()
    """(steps done, mean loss of the last one), of the present attempt."""
    metrics: Mapping[str, float] = field(default_factory=dict)


class LiveWriter:
    """Writes the file periodically; write errors are ignored, as no result depends on the file.

    Args:
        store: the trial's stage folder.
        every_s: seconds between two writes while it trains.
    """

    def __init__(self, store: Storage, every_s: float = 3.0) -> None:
        self.store, self.every_s = store, every_s
        self._losses: list[tuple[int, float]] = []
        self._metrics: dict[str, float] = {}
        self._next = 0.0

    def step(self, step: int, loss: float) -> None:
        """Record a finished optimiser step."""
        self._losses.append((step, loss))
        if time.monotonic() >= self._next:
            self.state("training")

    def state(self, state: str, metrics: Mapping[str, float] | None = None) -> None:
        """Record the current phase and results; written immediately."""
        self._metrics.update(metrics or {})
        content = {"state": state, "losses": self._losses, "metrics": self._metrics}
        try:
            self.store.write(LIVE_FILE, json.dumps(content).encode())
            self._next = time.monotonic() + self.every_s
        except (OSError, VtsweepError):
            self._next = time.monotonic() + 20 * self.every_s

    def remove(self) -> None:
        """Record that the trial is done; its tables have the results."""
        with contextlib.suppress(OSError, VtsweepError):
            self.store.remove(LIVE_FILE)


def read_live(store: Storage) -> Live | None:
    """The file's content; None if it is absent or unreadable."""
    try:
        content = json.loads(store.read(LIVE_FILE))
        losses = tuple((int(step), float(loss)) for step, loss in content["losses"])
        return Live(str(content["state"]), losses, {str(k): float(v) for k, v in content["metrics"].items()})
    except (OSError, VtsweepError, ValueError, KeyError, TypeError, AttributeError):
        return None
