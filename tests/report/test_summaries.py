"""What MLflow and the terminal show of a finished stage."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import STAGES, ModelConfig, RunConfig, ScenesConfig
from orchestrator.errors import StageError
from orchestrator.report.summaries import summarise
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage
from orchestrator.store.study_record import View
from orchestrator.study.estimate import stage_seconds, this_machine
from orchestrator.study.row_pictures import row_footprint
from orchestrator.study.stage_kinds import STAGE_KINDS

RUN = RunConfig(model=ModelConfig(name="reference-joint"), data=ScenesConfig(n_images=4))


def test_a_kind_of_stage_without_a_summary_of_its_own_shows_its_numbers(tmp_path: Path) -> None:
    stage = Stage(Storage(str(tmp_path)), "sizes", {"version": 1})
    stage.open()
    stage.mark_done({"images": 12, "pixels": 3.5, "model": "a"})
    kind: Any = "sizes"
    summary = summarise(kind, View("point", RUN, stage, {}))
    assert summary.metrics == {"images": 12.0, "pixels": 3.5}
    assert summary.params["model"] == "reference-joint"


def test_a_kind_of_stage_without_an_estimate_gets_none() -> None:
    kind: Any = "sizes"
    with pytest.raises(StageError, match="no estimate of the time of stage 'sizes'"):
        stage_seconds(kind, RUN, 4, row_footprint(RUN), this_machine())


def test_every_named_stage_has_a_kind() -> None:
    assert tuple(STAGE_KINDS) == STAGES
