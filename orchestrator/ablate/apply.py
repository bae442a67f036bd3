"""Apply a policy to a plain transformers model: it deletes visual tokens of every prompt and changes nothing else.

    reduced = vt.apply_policy(model, "results/ablate/DIGEST/policy.yaml", tier="low")
    ids = reduced.generate(**processor(text=prompt, images=image, return_tensors="pt"), max_new_tokens=20)

The model's own code runs. Hooks exist only during a call, so `model` itself is unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from orchestrator.ablate.policy_file import load_policy
from orchestrator.ablate.selection import make_reduction
from orchestrator.ablate.selectors.kinds import Settings
from orchestrator.config import PolicyFile, PolicyRule
from orchestrator.errors import ConfigError, ModelError
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.families import make_adapter
from orchestrator.models.preparation import encoder_rows
from orchestrator.models.reduction import Reduction


class ReducedModel:
    """A model that deletes visual tokens of its prompts by one rule.

    `last` is the reduction of the last call: `last.kept` are the tokens left of each image, `last.seconds` the time of
    selection. Methods that read the question's tokens read all text of the prompt, including the chat template: the
    processor's output does not mark the question.
    """

    def __init__(self, adapter: Adapter, rule: PolicyRule, settings: Mapping[str, Settings]) -> None:
        self.adapter, self.rule, self.settings = adapter, rule, settings
        self.last: Reduction | None = None

    @torch.no_grad()
    def __call__(self, **inputs: Tensor) -> Any:
        """The model's output for a processor's tensors; `.logits` are of the shortened sequence."""
        return self.adapter.run(self._reduced(inputs))

    @torch.no_grad()
    def generate(self, *, max_new_tokens: int = 20, **inputs: Tensor) -> Int[Tensor, "B S"]:
        """Prompt ids followed by the greedily generated ids, as `model.generate(do_sample=False)` returns them."""
        ids = self.adapter.generate_ids(self._reduced(inputs), max_new_tokens)
        return torch.cat([inputs["input_ids"].cpu(), ids], dim=1)

    def _reduced(self, inputs: Mapping[str, Tensor]) -> Batch:
        batch = _as_batch(self.adapter, inputs)
        rule, n = self.rule, len(batch["input_ids"])
        if rule.deleted_share == 0.0 or not int(self.adapter.n_vision(batch).max()):
            self.last = None
            return batch
        shares = [[1.0 - rule.deleted_share] * n]
        self.last = make_reduction(self.adapter, batch, rule.method, [rule.layer], shares, settings=self.settings)
        return self.adapter.reduce(batch, self.last)


def _as_batch(adapter: Adapter, inputs: Mapping[str, Tensor]) -> Batch:
    """A processor's tensors with the fields that an adapter adds.

    Raises:
        ModelError: the prompts are padded on the right, so that the last position is padding.
    """
    batch: Batch = {key: value.cpu() for key, value in inputs.items() if isinstance(value, Tensor)}
    batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
    if not batch["attention_mask"][:, -1].all():
        raise ModelError("apply_policy: prompts are padded on the right; expected padding_side='left'.")
    if len(batch["input_ids"]) == 1 and (rows := encoder_rows(batch)) is not None:
        batch["n_encoder_rows"] = torch.tensor([rows])
    batch["groups"] = adapter.infer_groups(batch)
    return batch


def apply_policy(
    model: nn.Module, policy: str | PolicyFile | PolicyRule, *, tier: str | None = None, family: str = "all"
) -> ReducedModel:
    """A model that applies the fixed rule of a policy.

    Args:
        model: a loaded transformers model of a supported class; it may contain LoRA layers.
        policy: path or URI of `policy.yaml`, its content, or one rule.
        tier: tier of the questions; optional if the policy has a single tier.
        family: family of the questions; without a rule for it the tier's rule applies.

    Raises:
        ConfigError: the policy was chosen on another model, or has no rule for these questions.
        ModelError: the model's class is unsupported, or does not provide the inputs of the method.
    """
    adapter = make_adapter(model)
    if isinstance(policy, PolicyRule):
        return ReducedModel(adapter, policy, {})
    file = load_policy(policy) if isinstance(policy, str) else policy
    check_same_model(file, adapter)
    return ReducedModel(adapter, _rule(file, tier, family), file.selector_settings)


def check_same_model(policy: PolicyFile, adapter: Adapter) -> None:
    """Raise ConfigError if the policy was chosen on a model of another type or size."""
    actual = {
        "model_type": str(adapter.config.model_type),
        "n_layers": adapter.n_layers,
        "hidden_size": adapter.hidden_size,
    }
    expected = {key: getattr(policy, key) for key in actual}
    differing = {key: value for key, value in expected.items() if value and value != actual[key]}
    if differing:
        words = ", ".join(f"{key} {value} (found {actual[key]})" for key, value in differing.items())
        raise ConfigError(f"apply_policy: the policy was chosen on {policy.model}, which has {words}")


def _rule(policy: PolicyFile, tier: str | None, family: str) -> PolicyRule:
    tiers = list(dict.fromkeys(rule.tier for rule in policy.fixed))
    if tier is None and len(tiers) == 1:
        (tier,) = tiers
    for name in (family, "all"):
        for rule in policy.fixed:
            if rule.tier == tier and rule.family == name:
                return rule
    raise ConfigError(f"apply_policy: no rule for tier {tier!r} and family {family!r}; the policy has tiers {tiers}")
