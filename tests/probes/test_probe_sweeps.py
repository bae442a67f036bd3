"""The shipped studies of probes expand to what their headers say."""

from pathlib import Path

import pytest

from orchestrator.config.sweep import load_sweep

SWEEPS = Path(__file__).parents[2] / "sweeps"


@pytest.mark.parametrize(("name", "n_points"), [("probes", 1), ("probes_full", 4)])
def test_the_shipped_studies_are_valid(name: str, n_points: int) -> None:
    sweep = load_sweep(SWEEPS / f"{name}.yaml")
    assert len(sweep.points) == n_points
    assert sweep.study.stages == ("capture", "probe")


def test_probes_of_one_model_share_its_capture() -> None:
    points = load_sweep(SWEEPS / "probes_full.yaml").points
    assert len({(p.run.model.name, p.run.capture.model_dump_json()) for p in points}) == 2
