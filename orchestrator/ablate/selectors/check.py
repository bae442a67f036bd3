"""Checks of selection methods and layers before work starts. This module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.ablate.selectors.entries import DOWNSAMPLE
from orchestrator.ablate.selectors.kinds import Selector
from orchestrator.ablate.selectors.registry import get_selector, selector_names, settings_of
from orchestrator.config import AblateConfig
from orchestrator.errors import ConfigError, ModelError, did_you_mean
from orchestrator.models.needs import FUSED, cannot_have


def check_methods(config: AblateConfig) -> None:
    """Check names, settings and depths of the methods.

    Raises:
        ConfigError: an unknown name or setting, or a method that cannot select before the decoder.
    """
    names = selector_names()
    named: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
        ("methods", config.methods, (DOWNSAMPLE,)),
        ("inside_methods", config.inside_methods, ()),
        ("rivals", config.rivals, (DOWNSAMPLE,)),
    ]
    for key, methods, others in named:
        for name in methods:
            if name not in (*names, *others):
                raise ConfigError(f"ablate.{key}: unknown name {name!r}.{did_you_mean(name, (*names, *others))}")
    for name in config.selector_settings:
        if name not in names:
            raise ConfigError(f"ablate.selector_settings: unknown method {name!r}.{did_you_mean(name, names)}")
        settings_of(get_selector(name), config.selector_settings)
    if before_decoder(config):
        for name in config.methods:
            if name != DOWNSAMPLE and not get_selector(name).at_input:
                raise ConfigError(
                    f"ablate.methods: {name} reads the decoder's attention, so it cannot choose before the decoder;"
                    " name it in ablate.inside_methods (check `inside`)."
                )


def before_decoder(config: AblateConfig) -> bool:
    """Whether a check deletes tokens before the decoder."""
    return bool({"deletion", "policy", "link"} & set(config.checks))


def check_routes(config: AblateConfig, model_type: str) -> None:
    """Check that the model type supports the checks lens, attention and routes.

    Raises:
        ConfigError: it does not.
    """
    if "lens" in config.checks and model_type in FUSED:
        raise ConfigError(f"ablate.checks: lens needs the output embeddings; {model_type!r} models hide theirs")
    if "attention" in config.checks and model_type in FUSED:
        raise ConfigError(f"ablate.checks: attention cannot be read of the fused blocks of {model_type!r} models")
    if "routes" in config.checks and model_type in FUSED:
        raise ConfigError(f"ablate.checks: routes need a cache to try answers on; {model_type!r} models have none")


def check_layers(config: AblateConfig, n_layers: int, cross_layers: Sequence[int]) -> None:
    """Check that the layers exist and read the image.

    Raises:
        ConfigError: they do not; names the layers that do.
    """
    reading = list(cross_layers) or list(range(n_layers))
    unread = [layer for layer in config.attention_layers or () if layer not in reading]
    if "attention" in config.checks and unread:
        raise ConfigError(f"ablate.attention_layers: {unread} attend to no image; those that do are {reading}")
    absent = [layer for layer in config.inside_layers or () if layer >= n_layers]
    if "inside" in config.checks and absent:
        raise ConfigError(f"ablate.inside_layers: {absent}; the decoder has layers 1 to {n_layers - 1}")


def check_model_gives(config: AblateConfig, model_type: str) -> None:
    """Check that the model type provides the inputs of all methods.

    Raises:
        ConfigError: it does not; names method, model type and the missing input.
    """
    check_routes(config, model_type)
    for selector, inside in selections(config):
        if reason := cannot_have(selector.needs_at(int(inside)), model_type):
            raise ConfigError(
                f"ablate: {selector.name} needs what a model of type {model_type!r} does not give: {reason}."
            )


def selections(config: AblateConfig) -> list[tuple[Selector, bool]]:
    """Every method of an ablation, and whether it selects inside the decoder (else before it)."""
    chosen = [(name, False) for name in config.methods if name != DOWNSAMPLE] if before_decoder(config) else []
    chosen += [(name, True) for name in config.inside_methods] if "inside" in config.checks else []
    rivals = config.rivals if "rivals" in config.checks else ()
    chosen += [(name, max(get_selector(name).depths) > 0) for name in rivals if name != DOWNSAMPLE]
    return [(get_selector(name), inside) for name, inside in dict.fromkeys(chosen)]


def check_needs(selector: Selector, layers: Sequence[int], model_type: str, cross_layers: Sequence[int]) -> None:
    """Check that a method can select at given layers.

    Raises:
        ModelError: the model does not provide its inputs, or no layer that reads the image comes before.
    """
    for layer in layers:
        needs = selector.needs_at(layer)
        if reason := cannot_have(needs, model_type):
            raise ModelError(f"{selector.name}: a model of type {model_type!r} does not give {reason}.")
        if not needs & {"attention", "own_attention"}:
            continue
        first = min(cross_layers, default=0) + 1 if "attention" in needs else int(not cross_layers)
        if layer < first:
            raise ModelError(
                f"{selector.name} reads the decoder's attention to the image, so it can choose after {first} or more"
                f" layers; found {layer}."
            )
