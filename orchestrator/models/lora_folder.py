"""Loads a saved LoRA adapter onto a model: every key is checked against the model before layers are injected."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ModelError
from orchestrator.models.catalogue import Entry, check_lora, digest_folder, entries
from orchestrator.models.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    LoadReport,
    header,
    listed,
    read_json,
)

if TYPE_CHECKING:
    from orchestrator.models.adapter import Adapter

BASE_DIGEST = "base_digest"
"""Metadata key of the weights with the digest of the base model's folder."""


def attach_lora(adapter: Adapter, name: str, entry: Entry | None = None, allow: Iterable[str] = ()) -> None:
    """Inject a saved LoRA adapter's layers into an adapter's model, unmerged, so that the base weights stay exact.

    Args:
        entry: the base model; None skips the check of the adapter's base model.
        allow: patterns of keys that may differ.

    Raises:
        ModelError: if the adapter has another base model, its targets match nothing, or any of its keys does not
            match: such keys would be ignored or keep their initial value, without any effect.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    place, folder, allow = f"model.adapter {name!r}", check_lora(name), tuple(allow)
    shapes, metadata = header(folder / ADAPTER_WEIGHTS, place)
    if entry is not None:
        check_base(place, folder, metadata, entry, allow)
    on_meta = adapter.device.type == "meta"
    try:
        wrapped = _injected(adapter.model, PeftConfig.from_pretrained(str(folder)), on_meta)
    except Exception as error:  # each setting of a foreign file may fail in a way of its own
        raise ModelError(f"{place}: its settings do not fit the model: {type(error).__name__}: {error}") from error
    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    expected = {key: tuple(tensor.shape) for key, tensor in state.items()}
    report = _report(shapes, expected)
    report.check(place, allow, _hint(report, wrapped.peft_config["default"], shapes))
    if on_meta:
        adapter.model = wrapped.get_base_model()
        return
    model = wrapped.unload()
    adapter.model = PeftModel.from_pretrained(model, str(folder), ignore_mismatched_sizes=True).get_base_model()


def _injected(model: Any, config: Any, on_meta: bool) -> Any:
    from peft import PeftModel

    # Only names and shapes are needed here; weights are loaded later.
    return PeftModel(model, config, low_cpu_mem_usage=True) if not on_meta else PeftModel(model, config)


def _report(shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> LoadReport:
    odd = [key for key in shapes.keys() & expected.keys() if shapes[key] != expected[key]]
    return LoadReport(
        missing=tuple(sorted(expected.keys() - shapes.keys())),
        unexpected=tuple(sorted(shapes.keys() - expected.keys())),
        misshapen=tuple(f"{key} (found {list(shapes[key])}, expected {list(expected[key])})" for key in sorted(odd)),
    )


def _hint(report: LoadReport, config: Any, shapes: dict[str, tuple[int, ...]]) -> str:
    """Return a likely cause of the mismatch of keys, if known."""
    unsaved = [name for name in config.modules_to_save or () if any(f".{name}." in f".{key}" for key in report.missing)]
    if unsaved:
        return f" {ADAPTER_CONFIG} has modules_to_save {unsaved}, whose weights were not saved."
    ranks = {shape[0] for key, shape in shapes.items() if ".lora_A." in f"{key}."}
    if report.misshapen and ranks and ranks != {config.r} and not config.rank_pattern:
        return f" {ADAPTER_CONFIG} says rank {config.r}; the weights have rank {listed(map(str, ranks))}."
    if report.unexpected and report.missing:
        return f" The model calls them as {report.missing[0]!r}: the adapter was trained on another layout or model."
    return ""


def check_base(place: str, folder: Path, metadata: dict[str, str], entry: Entry, allow: Iterable[str]) -> None:
    """Reject an adapter that names another base model.

    Raises:
        ModelError: which names both.
    """
    base = str(read_json(folder / ADAPTER_CONFIG, place).get("base_model_name_or_path") or "")
    if base in allow:
        return
    known = entries()
    trained = known[base].repository if base in known else base
    other = bool(trained) and entry.repository is not None and _is_hub_id(str(trained)) and trained != entry.repository
    if base in known and (shipped := known[base].folder) is not None:
        other = entry.folder is None or entry.folder.resolve() != shipped.resolve()
    digest = metadata.get(BASE_DIGEST)
    if digest is not None and entry.folder is not None:
        other = digest != digest_folder(entry.folder)
    if other:
        raise ModelError(
            f"{place} was trained on {base or 'other weights'}, and model.name is {entry.name}. Name its own base"
            f" model, or put {base!r} into model.allow to use it all the same."
        )


def base_digest(name: str) -> dict[str, str]:
    """Return the metadata of an adapter's weights that names the content of its base model's folder."""
    folder = Path(name).expanduser()
    return {BASE_DIGEST: digest_folder(folder)} if (folder / "config.json").is_file() else {}


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).expanduser().exists()
