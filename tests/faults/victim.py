"""A study of seconds over every stage, run as the command runs it, in a child process that faults can be done to.

A fork server imports the libraries once; each child is a process of its own, killed and interrupted like any other.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

STUDY = """
name: victim
stages: [capture, correlate, probe, finetune, ablate]
base:
  model: {name: reference-joint}
  data: {source: scenes, n_images: 24, n_objects: [1, 12], width: 112, height: 112}
  capture: {n_vision_positions: 2, n_text_positions: 1}
  correlate: {n_bootstrap: 0, attributes: [n_objects]}
  probe: {solvers: [ridge], attributes: [n_objects], taps: [decoder], layers: [1], n_bootstrap: 0, controls: [pixels],
          n_folds: 2, test_fraction: 0.45}
  finetune: {n_examples: 16, n_steps: 4, batch_size: 4, n_eval_per_family: 1, n_capture_images: 4,
             n_capture_questions: 4, search_trials: 2, task: {families: [colour, count], width: 112, height: 112}}
  ablate: {checks: [deletion, policy], low_families: [colour, count], high_families: [count], n_per_family: 4,
           deleted_shares: [0.5], methods: [norm], seeds: [0]}
  how: {batch_size: 8, shard_size: 8, torch_threads: 1, checkpoint_steps: 2, n_actors: 1, max_retries: 6}
search:
  finetune.dropout: {kind: uniform, low: 0.0, high: 0.3}
"""
PRELOADED = [
    "torch",
    "transformers.models.auto.modeling_auto",
    "peft",
    "polars",
    "scipy.stats",
    "sklearn.linear_model",
    "s3fs",
    "pyarrow.dataset",
    "orchestrator.cli.app",
    "orchestrator.study.run",
    "orchestrator.capture.shard_worker",
    "orchestrator.probes.ray",
    "orchestrator.finetune.ray.trials",
    "orchestrator.ablate.ray",
    "orchestrator.report",
]
"""Imported in the fork server: imports alone, no thread and no network connection is made by them."""

Arm = Callable[[], None]
"""Called in the child before the command: where a fault is put in its place."""


def _prepare(environment: Mapping[str, str], log: str) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.update(environment)
    os.setpgid(0, 0)  # a terminal's Ctrl-C reaches a process and those it started
    import orchestrator.report.build

    orchestrator.report.build.study_figures = lambda _: ()  # drawing takes longer than all else together


def _main(arguments: Sequence[str], environment: Mapping[str, str], log: str, arm: Arm | None) -> None:
    from orchestrator.cli import app

    _prepare(environment, log)
    if arm is not None:
        arm()
    app.main(arguments)


def _reside(environment: Mapping[str, str], log: str, wire: Connection) -> None:
    from orchestrator import interrupt
    from orchestrator.cli import app
    from tests.faults.attacks import Operations

    _prepare(environment, log)
    while True:
        try:
            function, arguments, arm = wire.recv()
        except EOFError:
            return
        if function is not None:
            wire.send(function(*arguments))
            continue
        with Operations.none_left():
            if arm is not None:
                arm()
            try:
                app.main(arguments)
            except SystemExit as end:
                wire.send(end.code)
            except BaseException:  # what would end a process of its own with a traceback
                traceback.print_exc()
                wire.send(1)
        interrupt._State.number = None


class Resident:
    """A process that runs one command after the other."""

    def __init__(self, place: Place) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.wire, theirs = context.Pipe()
        self.log = place.folder / "resident.log"
        self.log.touch()
        self.child = context.Process(target=_reside, args=(dict(place.environment), str(self.log), theirs))
        self.child.start()
        theirs.close()

    def command(self, arguments: Sequence[str], arm: Arm | None, patience: float) -> Ended:
        before = len(self.log.read_text())
        self.wire.send((None, list(arguments), arm))
        if not self.wire.poll(patience):
            self.child.kill()
            raise TimeoutError(f"no end after {patience:.0f} s:\n{self.log.read_text()[-2000:]}")
        code = self.wire.recv()
        return Ended(code, self.log.read_text()[before:])

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.wire.send((function, arguments, None))
        return self.wire.recv()

    def close(self) -> None:
        self.wire.close()
        self.child.join(10)
        self.child.kill()


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (minus the signal's number where one ended it), and what it printed."""

    code: int
    text: str


@dataclass(frozen=True)
class Place:
    """Where one study's results lie, and how its commands reach it."""

    uri: str
    folder: Path
    """Of logs and the sweep file, on this machine."""
    backend: str = "local"
    environment: tuple[tuple[str, str], ...] = ()
    track: bool = False
    resident: bool = False
    """One process runs all commands: what lies in memory is its own."""
    patience: float = 180.0
    """Seconds after which a command counts as hung."""

    def start(self, arguments: Sequence[str], arm: Arm | None = None) -> tuple[BaseProcess, Path]:
        """Start `vtsweep ARGUMENTS` in a child; returns it and where its output goes."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        log = self.folder / f"{len(list(self.folder.glob('*.log'))):02d}.log"
        log.touch()
        child = context.Process(target=_main, args=(list(arguments), dict(self.environment), str(log), arm))
        child.start()
        return child, log

    def command(self, arguments: Sequence[str], arm: Arm | None = None) -> Ended:
        """Run `vtsweep ARGUMENTS` to its end.

        Raises:
            TimeoutError: it hangs.
        """
        if self.resident:
            return self.process.command(arguments, arm, self.patience)
        return self.wait(*self.start(arguments, arm))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` returns where results can be seen."""
        return self.process.call(function, *arguments) if self.resident else function(*arguments)

    @cached_property
    def process(self) -> Resident:
        return Resident(self)

    def close(self) -> None:
        """End the resident process, if there is one."""
        if "process" in self.__dict__:
            self.process.close()

    def wait(self, child: BaseProcess, log: Path) -> Ended:
        child.join(self.patience)
        if child.exitcode is None:
            child.kill()
            child.join()
            raise TimeoutError(f"no end after {self.patience:.0f} s:\n{log.read_text()[-2000:]}")
        return Ended(child.exitcode, log.read_text())

    @property
    def run_arguments(self) -> list[str]:
        file = self.folder / "victim.yaml"
        if not file.exists():
            file.write_text(STUDY)
        track = json.dumps(self.track)
        return ["run", str(file), f"storage={self.uri}", f"how.backend={self.backend}", f"track.enabled={track}", "-q"]

    @property
    def study(self) -> str:
        return f"{self.uri}/studies/victim"
