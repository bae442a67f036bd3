"""Progress of a long step: a bar on a terminal, plain lines otherwise; with rate and remaining time."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import ClassVar, NamedTuple, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from orchestrator import interrupt

_LINE_SECONDS = 5.0
"""Minimum interval, s, between lines in redirected output or a job log."""


def format_number(value: float) -> str:
    """`0.12345` -> `0.123`, `1580.2` -> `1,580`."""
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.3g}"


def format_seconds(seconds: float) -> str:
    """`75.2` -> `1m15s`."""
    total = round(seconds)
    if total < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    return f"{total // 3600}h{total % 3600 // 60:02d}m"


class Reading(NamedTuple):
    """Progress of a step."""

    done: int
    total: int | None
    unit: str
    rate: float
    """Units per second, without those of earlier runs."""
    values: Mapping[str, Sequence[tuple[int, float]]] = {}
    """Name -> (units done, value): what single units gave."""


class Progress:
    """Counts finished units of one step.

    Args:
        step: name shown, e.g. `capture reference-joint`.
        total: total number of units; None if unknown.
        unit: plural name of a unit, e.g. `images`.
        done: units finished by an earlier run; excluded from the rate.
        quiet: show nothing.
        about: digest of the stage, the key of `reading`.
    """

    _open: ClassVar[dict[str, Progress]] = {}

    def __init__(
        self, step: str, total: int | None, unit: str, *, done: int = 0, quiet: bool = False, about: str = ""
    ) -> None:
        self.step, self.total, self.unit, self.done, self.quiet = step, total, unit, done, quiet
        self._about = about
        self._skipped = done
        self._note = ""
        self._values: dict[str, list[tuple[int, float]]] = {}
        self._stream: TextIO = sys.stderr
        self._bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        self._started = self._last_line = time.monotonic()
        if self._about:
            Progress._open[self._about] = self
        if self.quiet:
            return self
        if self._stream.isatty():
            self._bar = RichProgress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[note]}"),
                console=Console(file=self._stream),
                transient=False,
            )
            self._task = self._bar.add_task(self.step, total=self.total, completed=self.done, rate="", note="")
            self._bar.start()
        else:
            known = f" of {self.total}" if self.total is not None else ""
            resumed = f", {self.done} already done" if self.done else ""
            self._print(f"{self.step}: starting, {self.unit}{known}{resumed}")
        return self

    def advance(self, n: int = 1, note: str = "", **values: float) -> None:
        """Record `n` more finished units; `note` is shown after the rate, `values` by who follows (`reading`)."""
        interrupt.check()
        self.done += n
        for name, value in values.items():
            self._values.setdefault(name, []).append((self.done, value))
        self._note = note or self._note
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self.done, rate=f"{format_number(self._rate())} {self.unit}/s", note=self._note
            )
        elif time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._last_line = time.monotonic()
            self._print(self._line())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Progress._open.pop(self._about, None)
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.stop()
        else:
            elapsed = format_seconds(time.monotonic() - self._started)
            state = "done" if kind is None else "stopped"
            rate = f", {format_number(self._rate())} {self.unit}/s" if self.done > self._skipped else ""
            self._print(f"{self.step}: {state}, {self.done} {self.unit} in {elapsed}{rate}")

    @classmethod
    def reading(cls, about: str) -> Reading | None:
        """Progress of a stage in this process; None if it is not running."""
        progress = cls._open.get(about)
        if progress is None:
            return None
        values = {name: list(points) for name, points in list(progress._values.items())}
        return Reading(progress.done, progress.total, progress.unit, progress._rate(), values)

    def _rate(self) -> float:
        return (self.done - self._skipped) / max(time.monotonic() - self._started, 1e-9)

    def _line(self) -> str:
        rate = self._rate()
        line = f"{self.step}: {self.done}"
        if self.total:
            left = format_seconds((self.total - self.done) / rate) if rate else "?"
            line += f"/{self.total} {self.unit} ({self.done / self.total:.0%}), {format_number(rate)}/s, {left} left"
        else:
            line += f" {self.unit}, {format_number(rate)}/s"
        return f"{line} {self._note}".rstrip()

    def _print(self, line: str) -> None:
        Console(file=self._stream, highlight=False, soft_wrap=True).print(Text(line))
