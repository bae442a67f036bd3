"""What a plan says of the power of its seeds."""

from orchestrator.config import RunConfig
from orchestrator.study.plan import power_of_seeds


def runs(n_seeds: int) -> list[RunConfig]:
    return [
        RunConfig.model_validate({"finetune": {"complexity_ratio": ratio, "seed": seed}})
        for ratio in (0.0, 0.5)
        for seed in range(n_seeds)
    ]


def test_a_plan_states_the_power_of_its_seeds() -> None:
    assert "39 %" in power_of_seeds(runs(5)) or "40 %" in power_of_seeds(runs(5))
    assert "no interval" in power_of_seeds(runs(2))
    assert power_of_seeds(runs(5)[:5]) == ""
