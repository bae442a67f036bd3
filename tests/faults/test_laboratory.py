"""Seeded attacks on a whole study: `pytest -m faults --attacks 1000` for hours, a few in the gate."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from tests.faults.attacks import KINDS, RAY_KINDS, Attack, Planted, put_files
from tests.faults.laboratory import Laboratory, Tables, assert_same, read_tables, resume
from tests.faults.s3_server import S3Server
from tests.faults.victim import Place

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

RAY_SHARE = 0.08
"""Of the attacks: a run on Ray takes several times as long."""


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("laboratory"), s3_server)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "attack" in metafunc.fixturenames:
        n, first = metafunc.config.getoption("--attacks"), metafunc.config.getoption("--first-attack")
        attacks = [Attack.draw(seed, RAY_SHARE) for seed in range(first, first + n)]
        metafunc.parametrize("attack", attacks, ids=[str(attack) for attack in attacks])


def test_an_attacked_study_ends_as_the_undisturbed_one_or_fails_clearly_and_resumes_to_it(
    laboratory: Laboratory, attack: Attack, record_property: Callable[[str, object], None]
) -> None:
    record_property("ended", laboratory.run(attack))


@pytest.mark.parametrize("fault", ["nothing is checked", "done before written"])
def test_the_laboratory_finds_a_fault_of_the_program(
    laboratory: Laboratory, tmp_path: Path, fault: Literal["nothing is checked", "done before written"]
) -> None:
    """A bit of a feature is changed before the probes read it; a stage is marked done and killed before it writes."""
    whole, place = laboratory.undisturbed("local"), place_in(tmp_path)
    files, _ = whole.before("probe")
    if fault == "nothing is checked":
        (name,) = [name for name in files if name.endswith("features/decoder/00000.npy")]
        files[name] = files[name][:-1] + bytes([files[name][-1] ^ 0x40])
    put_files(place.uri, files)
    ended = place.command(place.run_arguments, Planted(fault))
    assert ended.code == (0 if fault == "nothing is checked" else -signal.SIGKILL)
    if ended.code:
        with pytest.raises(AssertionError):
            assert resume(place, altered=False).code == 0
    else:
        with pytest.raises(AssertionError):
            assert_same(read_tables(place.uri), whole.tables)


def test_every_kind_of_attack_is_drawn_on_every_store() -> None:
    drawn = [Attack.draw(seed, RAY_SHARE) for seed in range(300)]
    assert {(a.kind, a.store) for a in drawn if a.backend == "local"} == {
        (kind, store) for kind in KINDS for store in ("local", "s3", "memory") if (kind, store) != ("kill", "memory")
    }
    on_ray = {(a.kind, a.store) for a in (Attack.draw(seed, 1.0) for seed in range(300))}
    assert on_ray == {(kind, store) for store, kinds in RAY_KINDS.items() for kind in kinds}
    assert Attack.draw(7, RAY_SHARE) == Attack.draw(7, RAY_SHARE)


def place_in(folder: Path, **options: object) -> Place:
    return Place(str(folder / "out"), folder, **options)  # type: ignore[arg-type]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of writing and content of every file of finished stages and search records, and MLflow's runs."""
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in folder.rglob("*")
        if file.is_file() and not file.is_relative_to(folder / "studies") and not file.name.startswith("mlflow.db")
    }


def n_runs(folder: Path) -> int:
    import sqlite3

    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return int(database.execute("select count(*) from runs").fetchone()[0])


def test_a_rerun_that_does_nothing_changes_nothing(tmp_path: Path, laboratory: Laboratory) -> None:
    place = place_in(tmp_path, track=True)
    assert place.command(place.run_arguments).code == 0
    before, runs = snapshot(tmp_path / "out"), n_runs(tmp_path / "out")
    assert len(before) > 50
    assert runs > 5
    for _ in range(2):
        assert place.command(place.run_arguments).code == 0
        assert n_runs(tmp_path / "out") == runs
        assert snapshot(tmp_path / "out") == before
    assert_same(read_tables(place.uri), laboratory.undisturbed("local").tables)


def test_two_drivers_at_once_share_one_study_without_harm(tmp_path: Path, laboratory: Laboratory) -> None:
    place = place_in(tmp_path, track=True)
    drivers = [place.start(place.run_arguments)]
    time.sleep(0.3)
    drivers.append(place.start(place.run_arguments))
    ended = [place.wait(*driver) for driver in drivers]
    assert [one.code for one in ended] == [0, 0], "\n".join(one.text[-2000:] for one in ended)
    assert_same(read_tables(place.uri), laboratory.undisturbed("local").tables)
    assert place.command(["verify", place.study, "-q"]).code == 0


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_into_a_search_on_ray_leaves_nothing_half_done(
    tmp_path: Path, laboratory: Laboratory, number: signal.Signals
) -> None:
    """Sent to the driver's whole process group, as a terminal does, once the first trial has begun."""
    place = place_in(tmp_path, backend="ray")
    child, log = place.start([*place.run_arguments, "stages=[finetune]"])
    folder = tmp_path / "out"
    while not list(folder.glob("finetune/*/stage.json")) and child.is_alive():
        time.sleep(0.05)
    assert child.is_alive(), log.read_text()[-2000:]
    assert child.pid is not None
    os.killpg(child.pid, number)
    ended = place.wait(child, log)
    assert ended.code == 128 + number, ended.text[-2000:]
    assert "Traceback" not in ended.text, ended.text[-3000:]
    assert "Run the same command again to resume" in ended.text
    done = {file.parent for file in folder.glob("finetune/*/_SUCCESS")}
    assert all((one / "trials" / "00000.parquet").exists() for one in done)
    assert not (folder / "studies/victim/report/report.html").exists()
    again = resume(place, altered=False)
    assert again.code == 0, again.text[-3000:]
    found: Tables = read_tables(place.uri)
    assert_same(found, laboratory.undisturbed("ray").tables)
