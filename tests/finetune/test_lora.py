"""LoRA goes where it is asked, at its own rank and rate, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from orchestrator.answers.prepared import Prepared
from orchestrator.config import RunConfig
from orchestrator.data.mixture import make_evaluation
from orchestrator.errors import ConfigError
from orchestrator.finetune.lora import checksum, tunable
from orchestrator.models.adapter import Adapter
from orchestrator.models.loading import load_adapter
from orchestrator.models.random_models import random_adapter, random_example

MakeRun = Callable[..., RunConfig]
PARTS = {
    "language": {"rank": 8, "learning_rate": 5e-5},
    "projector": {"rank": 4, "learning_rate": 1e-5},
    "vision": {"rank": 2, "learning_rate": 2e-6},
}


def test_each_part_has_its_own_rank_and_learning_rate(adapter: Adapter, make_run: MakeRun) -> None:
    with tunable(adapter, make_run(**PARTS).finetune) as tuned:
        groups = {group["part"]: group for group in tuned.optimiser_groups()}
        assert {part: group["lr"] for part, group in groups.items()} == {
            part: settings["learning_rate"] for part, settings in PARTS.items()
        }
        assert sum(len(group["params"]) for group in groups.values()) == len(tuned.parameters)
        for name, parameter in tuned.parameters.items():
            part = adapter.group_of(name)
            assert tuned.parts[name] == part
            assert min(parameter.shape) == PARTS[part]["rank"]
            assert any(parameter is member for member in groups[part]["params"])
        scales = {name: m.scaling["default"] for name, m in adapter.model.named_modules() if hasattr(m, "lora_A")}
        assert set(scales.values()) == {2.0}, "alpha follows each part's own rank"


def test_a_part_of_rank_0_stays_frozen(adapter: Adapter, make_run: MakeRun) -> None:
    with tunable(adapter, make_run(vision={"rank": 0, "learning_rate": 1e-3}).finetune) as tuned:
        assert set(tuned.parts.values()) == {"language", "projector"}
        assert not any("vision_tower" in name for name, p in adapter.model.named_parameters() if p.requires_grad)


def test_nothing_to_train_is_refused(adapter: Adapter, make_run: MakeRun) -> None:
    frozen = {"rank": 0, "learning_rate": 1e-3}
    with (
        pytest.raises(ConfigError, match="rank 0"),
        tunable(adapter, make_run(language=frozen, projector=frozen, vision=frozen).finetune),
    ):
        pass


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_base_model_comes_back_unchanged(adapter: Adapter, make_run: MakeRun, method: str) -> None:
    names = [name for name, _ in adapter.model.named_modules()]
    before = checksum(adapter.model)
    with tunable(adapter, make_run(method=method).finetune) as tuned, torch.no_grad():
        for parameter in tuned.parameters.values():
            parameter.add_(1.0)
    assert checksum(adapter.model) == before
    assert [name for name, _ in adapter.model.named_modules()] == names
    assert not any(p.requires_grad for p in adapter.model.parameters())


def test_a_part_that_is_trained_whole_comes_back_unchanged(make_run: MakeRun) -> None:
    """Gemma 3's projector has no linear layer that LoRA could be put on."""
    adapter = random_adapter("gemma3")
    example = random_example(adapter)
    with torch.no_grad():
        before = adapter.run(example).logits
        with tunable(adapter, make_run().finetune) as tuned:
            assert set(tuned.parts.values()) == {"language", "projector"}
            for parameter in tuned.parameters.values():
                parameter.add_(1.0)
            assert not torch.allclose(adapter.run(example).logits, before)
        assert torch.equal(adapter.run(example).logits, before)


def test_the_checksum_sees_a_single_changed_weight(adapter: Adapter) -> None:
    before = checksum(adapter.model)
    parameter = next(adapter.model.parameters())
    with torch.no_grad():
        parameter.view(-1)[3] += 1e-6
    assert checksum(adapter.model) != before


def test_saved_adapters_load_as_any_lora_folder(adapter: Adapter, make_run: MakeRun, tmp_path) -> None:
    run = make_run(**PARTS)
    prepared = Prepared(adapter)
    question = prepared.prompt(make_evaluation(run.finetune)[0])
    with tunable(adapter, run.finetune) as tuned, torch.no_grad():
        for name, parameter in tuned.parameters.items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        for name, data in tuned.files("base").items():
            (tmp_path / name).write_bytes(data)
        expected = adapter.run(question).logits
    loaded = load_adapter(run.model.model_copy(update={"adapter": str(tmp_path)}))
    with torch.no_grad():
        torch.testing.assert_close(loaded.run(question).logits, expected)
        assert not torch.allclose(adapter.run(question).logits, expected)
