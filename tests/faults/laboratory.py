"""One attack after another on a study: it ends as the undisturbed study did, or fails clearly and resumes to that.

The rules:
- a run that ends with 0 has every table as the undisturbed run has it, but for a file altered after it was written;
- a run that fails ends with a code of its own (2 to 7, 130, 143) and a message, never a traceback;
- the same command, or what its message says, then finishes it; what was altered is named by `vtsweep verify`;
- it ends: no attack takes longer than some minutes.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from polars.testing import assert_frame_equal

from orchestrator.store.filesystem import Storage
from tests.faults.attacks import (
    STAGES,
    Armed,
    Attack,
    Operation,
    Recording,
    Timed,
    damage,
    files_of,
    place_of,
    put_files,
)
from tests.faults.s3_server import S3Server, Trouble
from tests.faults.victim import Ended, Place

ALTERS = ("corrupt", "truncate")
CLOCKED = re.compile(r"seconds|_per_s$|time")
"""Columns that a clock fills."""
Tables = dict[str, pl.DataFrame | np.ndarray]


def read_tables(uri: str) -> Tables:
    """Every table and array of a storage's stages, by file name, without the columns that a clock fills."""
    storage, found = Storage(uri), {}
    for name in files_of(storage):
        if name.startswith(("mlflow", "studies/")):
            continue
        data = storage.fs.cat_file(storage.path(name))
        if name.endswith(".parquet"):
            table = pl.read_parquet(data)
            found[name] = table.drop([column for column in table.columns if CLOCKED.search(column)])
        elif name.endswith(".npy"):
            with tempfile.TemporaryFile() as file:
                file.write(data)
                file.seek(0)
                found[name] = np.load(file, allow_pickle=False)
    return found


def assert_same(found: Tables, expected: Tables) -> None:
    assert sorted(found) == sorted(expected)
    for name, table in expected.items():
        if isinstance(table, pl.DataFrame):
            assert_frame_equal(found[name], table, check_exact=True)
        else:
            np.testing.assert_array_equal(found[name], table, err_msg=name)


@dataclass(frozen=True)
class Undisturbed:
    """The study as it should be: its tables, its operations on storage, and how long it takes."""

    tables: Tables
    operations: list[Operation]
    seconds: float
    stage_seconds: dict[str, float]
    files: dict[str, bytes]
    """Of all stages, by name below the storage."""

    @property
    def patience(self) -> float:
        """Seconds after which a command hangs: a busy machine is slow with everything."""
        return max(180.0, 10 * self.seconds)

    def before(self, stage: str) -> tuple[dict[str, bytes], float]:
        """Files of the stages that come before a stage, and the seconds that those took."""
        done = STAGES[: STAGES.index(stage)]
        folders = {*done, *(("baseline", "search") if "finetune" in done else ())}
        files = {name: data for name, data in self.files.items() if name.partition("/")[0] in folders}
        return files, sum(self.stage_seconds.get(name, 0.0) for name in done)


class Laboratory:
    """Attacks in a folder of their own, one after the other."""

    def __init__(self, folder: Path, server: S3Server) -> None:
        self.folder, self.server = folder, server
        self.known: dict[str, Undisturbed] = {}

    def undisturbed(self, backend: str) -> Undisturbed:
        if backend not in self.known:
            folder = self.folder / f"undisturbed-{backend}"
            folder.mkdir()
            place = Place(str(folder / "out"), folder, backend, patience=1800.0)
            started = time.monotonic()
            ended = place.command(place.run_arguments, Recording(str(folder / "operations")))
            assert ended.code == 0, f"the undisturbed run ends with {ended.code}:\n{ended.text[-3000:]}"
            lines = (folder / "operations").read_text().splitlines()
            operations: list[Operation] = [(one, two) for one, two in (line.split("\t") for line in lines)]
            seconds, storage = time.monotonic() - started, Storage(place.uri)
            files = {name: storage.read(name) for name in files_of(storage) if not name.startswith("mlflow")}
            record = json.loads(files["studies/victim/study.json"])
            self.known[backend] = Undisturbed(read_tables(place.uri), operations, seconds, record["seconds"], files)
        return self.known[backend]

    @contextmanager
    def place(self, attack: Attack) -> Iterator[Place]:
        """A new place for results of an attack's kind."""
        patience = self.undisturbed(attack.backend).patience
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{attack.seed}-"))
        place = Place(str(folder / "out"), folder, attack.backend, track=attack.track, patience=patience)
        if attack.store == "s3":
            place = replace(place, uri=f"{self.server.bucket()}/results", environment=self.server.environment)
        if attack.store == "memory":
            place = replace(place, uri="memory://attacked/results", resident=True)
        try:
            yield place
        finally:
            self.server.set(None)
            place.close()
        shutil.rmtree(folder)  # kept where something was found

    def run(self, attack: Attack) -> str:
        """Do one attack; returns what came of the attacked run (`whole`, `failed`, `killed`, `stopped`).

        Raises:
            AssertionError: it broke one of the rules.
        """
        whole = self.undisturbed(attack.backend)
        with self.place(attack) as place:
            if not attack.fresh:
                place.call(put_files, place.uri, whole.before(attack.stage)[0])
            ended = self.attacked(attack, place, whole)
            check_ending(attack, ended)
            self.server.set(None)
            altered = attack.kind in ALTERS
            if ended.code == 0 and not altered:
                assert_same(place.call(read_tables, place.uri), whole.tables)
                return "whole"
            again = resume(place, altered)
            assert again.code == 0, f"{attack}: the resumed run ends with {again.code}:\n{again.text[-3000:]}"
            assert_same(place.call(read_tables, place.uri), whole.tables)
            return {0: "whole", 130: "stopped", 143: "stopped", -signal.SIGKILL: "killed"}.get(ended.code, "failed")

    def attacked(self, attack: Attack, place: Place, whole: Undisturbed) -> Ended:
        dice = random.Random(attack.seed + 1)
        if (attack.backend == "ray" or dice.random() < 0.2) and attack.kind in {"kill", "interrupt", "worker"}:
            number = dice.choice((signal.SIGINT, signal.SIGTERM)) if attack.kind == "interrupt" else signal.SIGKILL
            left = whole.seconds - (0.0 if attack.fresh else whole.before(attack.stage)[1])
            timed = Timed(dice.uniform(0.05, 1.0) * left, number, attack.kind == "worker")
            return place.command(place.run_arguments, timed)
        if (
            attack.store == "s3"
            and attack.kind in {"refuse", "delay"}
            and (attack.backend == "ray" or dice.random() < 0.7)
        ):
            length = dice.choice((1, 2, 3, 10**9 if attack.kind == "refuse" else 20))
            kind = dice.choice(("refuse", "cut")) if attack.kind == "refuse" and length < 10 else attack.kind
            self.server.set(Trouble(kind, dice.randint(1, 3 * len(whole.operations)), length))
            return place.command(place.run_arguments)
        if attack.kind in ALTERS and dice.random() < 0.3:  # at rest, after the end
            ended = place.command(place.run_arguments)
            assert ended.code == 0, ended.text
            place.call(damage, place.uri, dice, attack.kind)
            return ended
        at = place_of(whole.operations, attack.stage, dice)
        return place.command(place.run_arguments, Armed(attack, at, place.uri))


def check_ending(attack: Attack, ended: Ended) -> None:
    """No traceback, and a code that says what came about."""
    end = f"{attack} ended with {ended.code}:\n{ended.text[-3000:]}"
    assert "Traceback" not in ended.text, end
    assert ended.code in {0, 2, 3, 4, 5, 6, 7, 130, 143, -signal.SIGKILL}, end
    if ended.code in {130, 143}:
        assert attack.kind == "interrupt", end
        assert "Run the same command again to resume" in ended.text, end
    elif ended.code > 0:
        assert attack.kind != "delay", end
        assert "error: " in ended.text, end


REMOVE = re.compile(r"remove the folder (\S+) to begin the stage again")


def resume(place: Place, altered: bool) -> Ended:
    """The same command until it ends well, doing what its message asks for; then what `vtsweep verify` finds."""
    for _ in range(8):
        again = place.command(place.run_arguments)
        assert "Traceback" not in again.text, again.text[-3000:]
        if again.code == 0:
            checked = place.command(["verify", place.study, "-q"])
            assert "Traceback" not in checked.text, checked.text[-3000:]
            if checked.code == 0 or not altered:
                assert checked.code == 0, checked.text[-3000:]
                return again
        elif not altered:
            return again
        elif found := REMOVE.search(again.text.replace("\n", " ")):
            place.call(remove_folder, found[1])
            continue
        assert place.command(["verify", place.study, "--redo", "-q"]).code == 5, again.text[-3000:]
    return again


def remove_folder(uri: str) -> None:
    storage = Storage(uri.rstrip(";,."))
    storage.fs.rm(storage.path(""), recursive=True)
