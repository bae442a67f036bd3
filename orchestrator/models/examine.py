"""Checks whether a model can be used on this machine; each check reports its finding and, on failure, the fix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from orchestrator.config import ModelConfig
from orchestrator.errors import ModelError
from orchestrator.models.catalogue import Entry, resolve
from orchestrator.models.check import check_model, weights_here
from orchestrator.models.planning import Footprint, footprint_at
from orchestrator.store.memory import free_memory, memory_cap

QUESTION = "How many objects are there?"
IMAGE_SIZE = (480, 640)
"""(height, width) of the image that is tried, px."""

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """Result of one check: `found` is the finding, `fix` the remedy (empty if none is needed)."""

    check: str
    status: Status
    found: str
    fix: str = ""


def examine(config: ModelConfig, *, run: bool = True) -> list[Finding]:
    """Return what a model is, needs and does here; stops at the first thing without which the rest cannot work.

    Args:
        run: also load the weights and run one image. Weights of a hub model are used only if they are on this machine
            already; nothing large is downloaded.
    """
    findings: list[Finding] = []
    for finding in _checks(config, run):
        findings.append(finding)
        if finding.status == "fail":
            break
    return findings


def _checks(config: ModelConfig, run: bool) -> Iterator[Finding]:
    try:
        entry = resolve(config)
    except ModelError as error:
        yield Finding("model", "fail", str(error), "see `vtsweep models`")
        return
    yield Finding("model", "ok", f"{entry.name}: {entry.repository or entry.folder}")
    yield _pin(entry)
    yield _guard("extras", lambda: _extras(entry))
    yield _guard("config", lambda: _config(config))
    yield _guard("memory", lambda: _memory(config))
    yield _guard("prompt", lambda: _prompt(entry, config))
    if not run:
        return
    if not weights_here(entry):
        yield Finding("weights", "warn", "not on this machine", f"download them: hf download {entry.repository}")
        return
    yield _guard("weights", lambda: _weights(config))
    yield _guard("one image", lambda: _one_image(config))


def _weights(config: ModelConfig) -> Finding:
    check_model(config, questions=(QUESTION,), size=IMAGE_SIZE)
    adapter = f"; LoRA adapter {config.adapter} fits" if config.adapter else ""
    return Finding("weights", "ok", f"every name and shape is the model's{adapter}")


def _guard(check: str, look: Callable[[], Finding]) -> Finding:
    """Return the finding, or a failed one with the error's own advice."""
    try:
        return look()
    except ModelError as error:
        return Finding(check, "fail", str(error))
    except Exception as error:  # published files may fail in any way at all, and each is a finding
        return Finding(check, "fail", f"{type(error).__name__}: {error}")


def _pin(entry: Entry) -> Finding:
    if entry.folder is not None:
        return Finding("revision", "ok", "a local folder; its contents are digested")
    if entry.pinned:
        return Finding("revision", "ok", str(entry.revision))
    return Finding(
        "revision", "warn", "not pinned: the newest weights are used", "set model.revision to a full commit hash"
    )


def _extras(entry: Entry) -> Finding:
    from orchestrator.models.extras import missing_extras

    missing = missing_extras(entry)
    if missing:
        fix = f"pip install 'vtsweep[{','.join(missing)}]'"
        return Finding("extras", "fail", f"missing: {', '.join(missing)}", fix)
    from orchestrator.models.extras import FAMILY_EXTRAS

    needed = dict.fromkeys((*entry.extras, *FAMILY_EXTRAS.get(entry.family or "", ())))
    return Finding("extras", "ok", ", ".join(needed) or "none needed")


def _config(config: ModelConfig) -> Finding:
    found = _at(config)
    return Finding("config", "ok", f"{found.layers} layers of width {found.width}; {_image(found)}")


def _at(config: ModelConfig) -> Footprint:
    return footprint_at(config, *IMAGE_SIZE)


def _image(found: Footprint) -> str:
    height, width = IMAGE_SIZE
    return (
        f"an image of {width} x {height} px makes {found.vision_tokens} vision tokens,"
        f" {found.tflop_per_image:.3g} TFLOP, {found.bytes_per_image / 1e6:.3g} MB kept"
        f" ({found.raw_bytes_per_image / 1e6:.3g} MB of raw states)"
    )


def _memory(config: ModelConfig) -> Finding:
    import torch

    needed = _at(config).memory_gb
    if torch.cuda.is_available():
        free, where = torch.cuda.mem_get_info()[0] / 1e9, torch.cuda.get_device_name()
    else:
        free, where = free_memory() / 1e9, f"CPU; {memory_cap().of} {memory_cap().gb:.1f} GB"
    found = f"{needed:.2f} GB for one image at a time, {free:.1f} GB free ({where})"
    if needed > free:
        return Finding("memory", "warn", found, "use a larger device, or how.device_map: auto over several GPUs")
    return Finding("memory", "ok", found)


def _prompt(entry: Entry, config: ModelConfig) -> Finding:
    from orchestrator.models.loading import load_processor, with_hub_errors
    from orchestrator.models.prompts import family_rules, render

    if entry.family and (rules := family_rules(entry.family))["own_template"]:
        text = rules["written"].replace("{question}", QUESTION)
        return Finding("prompt", "ok", f"{text!r}, written by the processor itself")

    def load() -> Any:
        return load_processor(entry, revision=entry.revision, trust_remote_code=config.trust_remote_code)

    processor = with_hub_errors(entry, load)
    text, _ = render(processor, entry.family or "", QUESTION, image=True, date=config.date)
    kind = "chat template" if getattr(processor, "chat_template", None) else "published text"
    return Finding("prompt", "ok", f"{kind}: {text!r}")


def _one_image(config: ModelConfig) -> Finding:
    import torch

    from orchestrator.models.loading import load_adapter

    adapter = load_adapter(config, "cuda" if torch.cuda.is_available() else "cpu")
    image = np.random.default_rng(0).integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8)
    example = adapter.prepare(image, QUESTION)
    with torch.no_grad():
        logits = adapter.run(adapter.collate([example]), logits_to_keep=1).logits
    if not bool(logits.isfinite().all()):
        return Finding("one image", "fail", "the model's output is not finite", "try model.dtype: float32")
    vision, sequence = int(adapter.n_vision(example)[0]), example["input_ids"].shape[1]
    planned = _at(config).vision_tokens
    found = (
        f"{vision} vision tokens, {int((example['groups'] == 2).sum())} of the question, sequence {sequence};"
        f" {adapter.n_layers} layers of width {adapter.hidden_size}; answer {adapter.generate(example, 8)[0]!r}"
    )
    if vision != planned:
        return Finding("one image", "warn", f"{found}; the plan expected {planned}", "estimates are off by as much")
    return Finding("one image", "ok", found)
