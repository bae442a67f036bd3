"""Ray actors give the tables that one process gives; a lost actor costs nothing that was finished."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.store.filesystem import Storage
from tests.ablate.test_stage import make_run
from tests.points import ablate_stage, run_ablate, run_ablate_stage

SETTINGS = {"checks": ["deletion", "policy"], "n_per_family": 3, "methods": ["norm"], "deleted_shares": [0.5]}


@pytest.mark.ray
def test_actors_give_the_tables_of_one_process_also_when_one_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.ablate import ray as ablation

    fuse = tmp_path / "lost"

    class Mortal(ablation.AblateWorker):
        def cell(self, stage, index, cell):
            if index == 1 and not fuse.exists():
                fuse.touch()
                os._exit(1)
            return super().cell(stage, index, cell)

    monkeypatch.setattr(ablation, "AblateWorker", Mortal)
    ray_run = make_run(how={"backend": "ray", "n_actors": 2}, **SETTINGS)
    shared = Storage(str(tmp_path / "ray"))
    found = run_ablate_stage(ray_run, shared, quiet=True)
    assert fuse.exists()
    alone = run_ablate(make_run(**SETTINGS), Storage(str(tmp_path / "local")), quiet=True)
    assert found.digest == alone.digest == ablate_stage(ray_run, shared).digest
    for table in ("deletion", "deletion_answers", "policy"):
        a, b = (s.scan(table).collect() for s in (found, alone))
        assert a.drop("seconds", strict=False).equals(b.drop("seconds", strict=False))
