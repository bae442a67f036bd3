"""Which models are known by name, and what a name, hub id or folder stands for. Needs neither torch nor a network."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config import ModelConfig
from orchestrator.errors import ModelError, did_you_mean
from orchestrator.models.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, header, read_folder, read_json
from orchestrator.store.adapter_folder import adapter_folder

FAMILIES: dict[str, tuple[str, str]] = {
    "llava": ("LlavaForConditionalGeneration", "residual"),
    "llava_next": ("LlavaNextForConditionalGeneration", "residual"),
    "llava_onevision": ("LlavaOnevisionForConditionalGeneration", "residual"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "residual"),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", "residual"),
    "smolvlm": ("SmolVLMForConditionalGeneration", "residual"),
    "idefics3": ("Idefics3ForConditionalGeneration", "residual"),
    "internvl": ("InternVLForConditionalGeneration", "residual"),
    "paligemma": ("PaliGemmaForConditionalGeneration", "residual"),
    "gemma3": ("Gemma3ForConditionalGeneration", "residual"),
    "molmo2": ("Molmo2ForConditionalGeneration", "residual"),
    "mllama": ("MllamaForConditionalGeneration", "cross_kv"),
    "molmo": ("MolmoForCausalLM (remote code)", "residual"),
}
"""The supported `model_type`s: class and vision kind."""

ADAPTER_GROUP = "vtsweep.adapters"
"""A package adds a model class by an entry point in this group: `model_type = package.module:AdapterClass`."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONTENT = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
_LARGE = 1 << 26
"""Bytes from which a file's digest is kept for other commands: 64 MiB are read in some hundredths of a second."""
TAKES_SEVERAL = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "idefics3", "smolvlm", "gemma3")
"""Families whose published models were trained on several images a prompt, and whose processor lays them out."""


@dataclass(frozen=True)
class Entry:
    """What a model name stands for.

    `parameters` is in billions, `family` the config's `model_type` (`None` until a hub repository's config is read),
    `extras` are optional dependencies of vtsweep. Either `repository` or `folder` is set.
    """

    name: str
    repository: str | None = None
    folder: Path | None = None
    revision: str | None = None
    family: str | None = None
    parameters: float | None = None
    licence: str | None = None
    gated: bool = False
    extras: tuple[str, ...] = ()
    remote_code: bool = False

    @property
    def source(self) -> str:
        """The folder or hub id that transformers is given."""
        return str(self.folder) if self.folder else str(self.repository)

    @property
    def model_class(self) -> str | None:
        """The transformers class, if the family is known."""
        return FAMILIES[self.family][0] if self.family in FAMILIES else None

    @property
    def vision_kind(self) -> str | None:
        """`residual` or `cross_kv`, if the family is known."""
        return FAMILIES[self.family][1] if self.family in FAMILIES else None

    @property
    def pinned(self) -> bool:
        """Whether the weights cannot change under the name: a local folder, or a full commit hash."""
        return self.folder is not None or bool(self.revision and _COMMIT.fullmatch(self.revision))


@cache
def entries() -> dict[str, Entry]:
    """Return every named model."""
    package = Path(str(resources.files("orchestrator")))
    table = yaml.safe_load((package / "models" / "catalogue.yaml").read_text(encoding="utf-8"))
    return {name: _entry(name, fields, package) for name, fields in table.items()}


def _entry(name: str, fields: dict[str, Any], package: Path) -> Entry:
    fields = dict(fields)
    folder = fields.pop("folder", None)
    extras = tuple(fields.pop("extras", ()))
    return Entry(name=name, folder=package / folder if folder else None, extras=extras, **fields)


def catalogue_rows() -> list[dict[str, Any]]:
    """Return the named models as rows for a table: what each is and needs."""
    rows = []
    for entry in entries().values():
        needs = [f"vtsweep[{extra}]" for extra in entry.extras]
        needs += ["access on the hub"] if entry.gated else []
        if entry.remote_code:
            needs.append("trust_remote_code" if entry.pinned else "trust_remote_code and a revision")
        rows.append(
            {
                "name": entry.name,
                "family": entry.family,
                "kind": entry.vision_kind,
                "parameters_b": entry.parameters,
                "bf16_gb": round(2 * (entry.parameters or 0), 2),
                "licence": entry.licence,
                "needs": ", ".join(needs) or "-",
                "repository": entry.repository or "shipped with the package",
            }
        )
    return rows


def resolve(config: ModelConfig) -> Entry:
    """Return the entry of a catalogue name, a hub repository id, or a local checkpoint folder.

    Raises:
        ModelError: if the name is none of them, the folder is no checkpoint or has pickled weights only, a revision is
            asked of a folder, or remote code is asked for without a pinned revision.
    """
    entry = _find(config.name)
    if config.revision is not None and entry.folder is not None:
        raise ModelError(
            f"model.revision {config.revision!r}: model.name {config.name!r} is the folder {entry.folder}, which has no"
            " revisions; its content is what is used. Leave model.revision out, or name the repository on the hub."
        )
    if config.revision is not None:
        entry = replace(entry, revision=config.revision)
    if entry.remote_code and not config.trust_remote_code:
        pin = "" if entry.pinned else " and model.revision: COMMIT (the full 40-digit hash)"
        raise ModelError(
            f"model.name {config.name!r} runs Python code from {entry.source}. Read it, then set"
            f" model.trust_remote_code: true{pin}."
        )
    if config.trust_remote_code and not entry.pinned:
        raise ModelError(
            f"model.name {config.name!r}: trust_remote_code needs model.revision, the full 40-digit commit whose code"
            f" you have read; found {entry.revision!r}."
        )
    return entry


def _find(name: str) -> Entry:
    named = entries()
    if name in named:
        return named[name]
    path = Path(name).expanduser()
    if path.is_dir():
        return _local(name, path)
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        match = next((entry for entry in named.values() if entry.repository == name), None)
        return match or Entry(name=name, repository=name)
    expected = "expected a catalogue name, a hub repository id (owner/name) or a folder with config.json."
    raise ModelError(f"model.name {name!r} is unknown; {expected}{did_you_mean(name, named)}")


def _local(name: str, path: Path) -> Entry:
    family = read_folder(f"model.name {name!r}", path)
    return Entry(name=name, folder=path.resolve(), family=family, remote_code=family == "molmo")


def is_shipped(folder: Path) -> bool:
    """Return whether a checkpoint is one that this package brings."""
    return folder.parent == Path(__file__).resolve().parents[1] / "reference" / "checkpoints"


def _is_number(value: Any) -> bool:
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


_LORA_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "r": ("the rank, a whole number above 0", lambda r: _is_number(r) and r > 0 and not r % 1),
    "lora_alpha": ("a number other than 0: an update is scaled by lora_alpha / r", lambda a: _is_number(a) and a != 0),
    "target_modules": ("names of layers, or a pattern of them", _is_names),
    "modules_to_save": ("names of modules, or null", lambda names: names is None or _is_names(names)),
    **dict.fromkeys(
        ("rank_pattern", "alpha_pattern"),
        (
            "numbers by name of layer",
            lambda numbers: numbers is None or (isinstance(numbers, dict) and all(map(_is_number, numbers.values()))),
        ),
    ),
}
"""Fields of an adapter's config: peft computes with defaults of its own where one is absent."""


def check_lora(name: str) -> Path:
    """Return the folder of a saved LoRA adapter (a copy, where it lies on an object store), after a look at its files.

    Raises:
        StorageError: if its storage does not answer, or a trial's file is not what was written.
        ModelError: if it is none, its weights are pickled or cut off, or it was made by another method than LoRA.
    """
    place, folder = f"model.adapter {name!r}", adapter_folder(name)
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / file).is_file():
            raise ModelError(f"{place}: no {file}; expected a LoRA folder with safetensors weights.")
    config = read_json(folder / ADAPTER_CONFIG, place)
    if (method := config.get("peft_type")) != "LORA":
        raise ModelError(f"{place}: peft_type {method!r}; only LORA adapters can be loaded.")
    if config.get("megatron_config") is not None:
        raise ModelError(f"{place}: megatron_config is set; expected null: weights split by Megatron cannot be loaded.")
    header(folder / ADAPTER_WEIGHTS, place)
    for field, (expected, is_valid) in _LORA_FIELDS.items():
        if not is_valid(value := config.get(field)):
            found = repr(value) if field in config else "nothing"
            raise ModelError(f"{place}: {ADAPTER_CONFIG}: {field}: found {found}; expected {expected}.")
    return folder


def digest_folder(folder: Path) -> str:
    """Return the SHA-256 (16 hex digits) of a checkpoint's files: names and contents, weights included.

    Files are read again only when they have changed, large ones not even by another command (`store.content_cache`): a
    study asks many times, and a 7B model takes seconds to read.
    """
    files = sorted({file for pattern in _CONTENT for file in folder.glob(pattern)}, key=lambda file: file.name)
    states = [file.stat() for file in files]
    # The change time moves with every write, even where size and modification time are put back.
    return _digest_files(
        tuple((f, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for f, s in zip(files, states, strict=True))
    )


@lru_cache(maxsize=64)
def _digest_files(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    large = [file for file, size, *_ in files if size >= _LARGE]
    known = _large_digests(large) if large else {}
    digest = hashlib.sha256()
    for file, size, *_ in files:
        digest.update(f"{file.name}\0{size}\0".encode())
        digest.update(known.get(file) or _digest_file(file))
    return digest.hexdigest()[:16]


def _digest_file(file: Path) -> bytes:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _large_digests(files: Sequence[Path]) -> dict[Path, bytes]:
    """Digests of files in one folder; a file that is gone or cannot be read is left out."""
    from fsspec.implementations.local import LocalFileSystem

    from orchestrator.store.content_cache import MISSING, file_digests

    found = file_digests(LocalFileSystem(), str(files[0].parent), [file.name for file in files])
    return {f: bytes.fromhex(known.digest) for f, known in zip(files, found, strict=True) if known.digest != MISSING}
