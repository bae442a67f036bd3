"""Policies and adapters taken elsewhere: on a plain transformers model, and as a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from orchestrator.ablate.apply import apply_policy
from orchestrator.ablate.evaluate import evaluate_points
from orchestrator.ablate.identity import chosen_on, is_own_model
from orchestrator.ablate.policy import policy_text
from orchestrator.ablate.selection import make_reduction
from orchestrator.config import ModelConfig, PolicyFile, PolicyRule, RunConfig
from orchestrator.config.sweep import make_sweep
from orchestrator.errors import ConfigError, ModelError
from orchestrator.models import catalogue
from orchestrator.models.export import export_model, merge_lora
from orchestrator.models.loading import load_adapter
from orchestrator.models.random_models import random_adapter, random_example
from orchestrator.study.resolve import resolve
from tests.models.published import save_family
from tests.models.trained import trained_adapter

NAMES = ("reference-joint", "reference-cross")
NOT_OF_A_PROCESSOR = ("groups", "vision_grid", "n_encoder_rows")


def rule(method: str, share: float, layer: int = 0, tier: str = "low", family: str = "all") -> PolicyRule:
    return PolicyRule(tier=tier, family=family, method=method, layer=layer, deleted_share=share)


def inputs_of(adapter, n_text: int = 6):
    example = random_example(adapter, n_text=n_text)
    return {key: value for key, value in example.items() if key not in NOT_OF_A_PROCESSOR}


@pytest.mark.parametrize(
    ("family", "method", "layer"),
    [
        *((f, m, 0) for f in ("llava", "llava_next", "qwen2_5_vl", "gemma3", "mllama") for m in ("divprune", "tome")),
        *((f, "fastv", 2) for f in ("llava", "llava_next", "qwen2_5_vl", "gemma3")),
    ],
)
def test_a_plain_model_answers_as_the_bench_does(family: str, method: str, layer: int) -> None:
    adapter = random_adapter(family)
    inputs = inputs_of(adapter)
    example = random_example(adapter)
    expected = adapter.reduce(example, make_reduction(adapter, example, method, [layer], [[0.5]]))
    reduced = apply_policy(adapter.model, rule(method, 0.5, layer))
    ids = reduced.generate(**inputs, max_new_tokens=4)
    assert torch.equal(ids[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert torch.equal(ids[:, inputs["input_ids"].shape[1] :], adapter.generate_ids(expected, 4))
    assert torch.equal(reduced(**inputs).logits, adapter.run(expected).logits)
    assert reduced.last is not None
    assert reduced.last.kept[0].tolist() == expected["reduction"].kept[0].tolist()


def test_the_model_itself_stays_as_it_was() -> None:
    adapter = random_adapter("llava")
    inputs = inputs_of(adapter)
    with torch.no_grad():
        before = adapter.model(**inputs).logits
        apply_policy(adapter.model, rule("fastv", 0.5, 1)).generate(**inputs, max_new_tokens=3)
        assert torch.equal(adapter.model(**inputs).logits, before)
    whole = apply_policy(adapter.model, rule("norm", 0.0)).generate(**inputs, max_new_tokens=3)
    own = adapter.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(whole[:, : own.shape[1]], own)


def test_a_policy_of_another_model_or_for_other_questions_is_refused(tmp_path: Path) -> None:
    model = random_adapter("llava").model
    two = PolicyFile(model="m", max_accuracy_loss=0.01, fixed=(rule("norm", 0.5), rule("norm", 0.25, tier="high")))
    with pytest.raises(ConfigError, match=r"no rule for tier None .* tiers \['low', 'high'\]"):
        apply_policy(model, two)
    assert apply_policy(model, two, tier="high", family="count").rule.deleted_share == 0.25
    for key, value in (("model_type", "mllama"), ("n_layers", 9), ("hidden_size", 7)):
        other = two.model_copy(update={key: value})
        with pytest.raises(ConfigError, match=f"chosen on m, which has {key} {value}"):
            apply_policy(model, other, tier="low")
    file = tmp_path / "policy.yaml"
    file.write_text(policy_text(two, pl.DataFrame()))
    assert apply_policy(model, str(file), tier="low").rule == two.fixed[0]
    padded = inputs_of(random_adapter("llava"))
    padded["attention_mask"][:, -1] = 0
    with pytest.raises(ModelError, match="padded on the right"):
        apply_policy(model, rule("norm", 0.5)).generate(**padded)


def test_a_policy_is_evaluated_on_its_own_model_alone(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    policy = PolicyFile(model="reference-cross", max_accuracy_loss=0.05, fixed=(rule("norm", 0.5),))
    file.write_text(policy_text(policy, pl.DataFrame()))
    base = {"ablate": {"low_families": ["colour"], "high_families": [], "n_per_family": 4},
            "how": {"backend": "local", "torch_threads": 1}}  # fmt: skip
    study = {"name": "tiny", "storage": str(tmp_path / "r"), "base": base}
    with pytest.raises(
        ConfigError, match=r"chosen on reference-cross \(base\); the sweep has reference-joint \(base, weights"
    ):
        evaluate_points(resolve(make_sweep(study), ["ablate"]), str(file))
    both = make_sweep({**study, "axes": {"model.name": list(NAMES)}})
    assert [run.model.name for run, _ in evaluate_points(resolve(both, ["ablate"]), str(file))] == ["reference-cross"]


def test_a_policy_knows_its_model_by_weights_and_not_by_name(tmp_path: Path) -> None:
    own = catalogue.resolve(ModelConfig(name="reference-joint")).folder
    assert own is not None
    copy, other = tmp_path / "copy", tmp_path / "other"
    for folder in (copy, other):
        shutil.copytree(own, folder)
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    joint = RunConfig.model_validate({"model": {"name": "reference-joint"}})
    policy = PolicyFile(**chosen_on(joint), max_accuracy_loss=0.05, fixed=(rule("norm", 0.5),))

    def is_own(**model: object) -> bool:
        return is_own_model(policy, RunConfig.model_validate({"model": model}))

    assert is_own(name="reference-joint")
    assert is_own(name=str(copy))
    assert not is_own(name=str(other))
    assert not is_own(name="reference-cross")
    at = PolicyFile(model="org/model", weights=f"org/model@{'a' * 40}", max_accuracy_loss=0.05)
    pinned = {"name": "org/model", "revision": "a" * 40}
    assert is_own_model(at, RunConfig.model_validate({"model": pinned}))
    assert not is_own_model(at, RunConfig.model_validate({"model": {**pinned, "revision": "b" * 40}}))
    moved = policy.model_copy(update={"model": str(other)})
    study = {"name": "tiny", "storage": str(tmp_path / "r"), "base": {"model": {"name": str(other)}}}
    file = tmp_path / "policy.yaml"
    file.write_text(policy_text(moved, pl.DataFrame()))
    with pytest.raises(ConfigError, match=r"chosen on .*other \(base, weights .*\); the sweep has .*other \(base"):
        evaluate_points(resolve(make_sweep(study), ["ablate"]), str(file))


@pytest.mark.parametrize("name", ["reference-joint", "reference-cross", "gemma3"])
@torch.no_grad()
def test_an_exported_checkpoint_is_the_model_with_its_adapter(name: str, tmp_path: Path) -> None:
    """As plain transformers loads it, by its own classes and without remote code."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    base = name if name in NAMES else str(save_family(name, tmp_path / "base"))
    config = ModelConfig(name=base, adapter=str(trained_adapter(tmp_path / "adapter", base)))
    place = export_model(config, tmp_path / "merged")
    carried, plain = load_adapter(config), load_adapter(ModelConfig(name=base))
    picture = np.random.default_rng(0).integers(0, 255, (112, 112, 3), dtype=np.uint8)
    example = carried.collate([carried.prepare(picture, "how many circles are there?")])
    expected = carried.run(example).logits
    merged, info = AutoModelForImageTextToText.from_pretrained(place, output_loading_info=True)
    assert not any(info.values()), info
    inputs = {key: value for key, value in example.items() if key not in NOT_OF_A_PROCESSOR}
    found = merged.eval()(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert not torch.allclose(plain.run(example).logits, expected, atol=1e-2)
    assert not [one for one, _ in merged.named_parameters() if "lora" in one]
    assert type(AutoProcessor.from_pretrained(place)) is type(plain.processor)
    with pytest.raises(ModelError, match="not empty"):
        export_model(config, place)


def test_merging_nothing_changes_nothing() -> None:
    model = random_adapter("llava").model
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert merge_lora(model) == 0
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
