"""Checks of a checkpoint's files without torch: completeness of the folder, and safety of its weights.

Only names, sizes and headers are read, so that a plan can check a folder of any size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from orchestrator.errors import ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
SHOWN = 4
"""Maximum number of keys in a message."""


def read_json(file: Path, place: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ModelError: if the file cannot be read or holds something else.
    """
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{place}: {file.name} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{place}: {file.name} holds a {type(fields).__name__}; expected an object of settings.")
    return fields


def read_folder(place: str, folder: Path) -> str:
    """Return the `model_type` of a checkpoint folder after checking the names of its files.

    Raises:
        ModelError: if there is no config or no safetensors weights, a shard is missing, or a LoRA adapter lies inside.
    """
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            base = read_json(folder / ADAPTER_CONFIG, place).get("base_model_name_or_path")
            raise ModelError(
                f"{place}: the folder is a LoRA adapter, not a model. Set model.name to its base model ({base}) and"
                f" model.adapter to this folder."
            )
        raise ModelError(f"{place}: the folder has no config.json, so it is no checkpoint.")
    family = read_json(folder / "config.json", place).get("model_type")
    if not isinstance(family, str):
        raise ModelError(f"{place}: config.json has model_type {family!r}; expected the name of a model class.")
    if (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{place}: the folder holds {ADAPTER_CONFIG} beside the weights, so it would be loaded with that adapter."
            f" Move adapter_* to a folder of their own and name it in model.adapter."
        )
    weight_files(place, folder)
    return family


def weight_files(place: str, folder: Path) -> list[Path]:
    """Return the files that hold a checkpoint's weights.

    Raises:
        ModelError: if there are none, only pickled ones or a variant, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        shards = read_json(folder / INDEX, place).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ModelError(f"{place}: {INDEX} has no weight_map of file names.")
        names = sorted(set(shards.values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise ModelError(
                f"{place}: {INDEX}: weight_map: found {outside[0]!r}; expected names of files beside it, as only those"
                " are part of what identifies the model. Move the file into the folder and name it there."
            )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{place}: {len(missing)} of {len(names)} weight files are missing: {listed(missing)}. {INDEX} names"
                " them; download the model again."
            )
        return [folder / name for name in names]
    other = sorted(file.name for file in folder.glob("*.safetensors") if file.name != ADAPTER_WEIGHTS)
    if variants := [name for name in other if name.startswith("model.") or name.startswith("diffusion")]:
        raise ModelError(
            f"{place}: no {WEIGHTS}, but a variant of it: {listed(variants)}. Rename it to {WEIGHTS} if it is what you"
            " want; model.dtype says in which precision weights are used."
        )
    if other:
        raise ModelError(f"{place}: {listed(other)} without {INDEX}, which says what they hold; copy that file too.")
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED)
    found = f"only pickled weights ({', '.join(pickled)}), which can run code when read" if pickled else "none"
    raise ModelError(f"{place}: expected *.safetensors weights in the folder; found {found}.")


def header(file: Path, place: str) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return the shape of each tensor in a safetensors file, and its metadata, without reading a tensor.

    Raises:
        ModelError: if the file is cut off, empty or no safetensors file.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            n = int.from_bytes(stream.read(8), "little")
            if not 2 <= n <= min(size - 8, 100_000_000):
                raise ValueError(f"a header of {n} bytes in a file of {size}")
            fields = json.loads(stream.read(n))
        metadata = fields.pop("__metadata__", {})
        shapes = {name: tuple(tensor["shape"]) for name, tensor in fields.items()}
        end = 8 + n + max((tensor["data_offsets"][1] for tensor in fields.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{place}: {file.name} is no safetensors file: {error}") from error
    if end != size:
        raise ModelError(f"{place}: {file.name} has {size:,} bytes; its header says {end:,}. Download it again.")
    return shapes, metadata


def listed(names: Iterable[str]) -> str:
    """Return the first few names, and how many there are beyond them."""
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@dataclass(frozen=True)
class LoadReport:
    """Comparison of the keys of a weights file with a model, in the model's names."""

    missing: tuple[str, ...] = ()
    """In the model but not in the file: they would be initialised at random."""
    unexpected: tuple[str, ...] = ()
    """In the file but not in the model: they would be ignored."""
    misshapen: tuple[str, ...] = ()
    """`KEY (found SHAPE, expected SHAPE)`."""

    def without(self, allow: Iterable[str]) -> LoadReport:
        """Return the report without the keys that match any of the patterns (`*`, `?`, `[...]`)."""
        patterns = tuple(allow)

        def kept(keys: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(k for k in keys if not any(fnmatchcase(k.split(" (")[0], p) for p in patterns))

        return LoadReport(kept(self.missing), kept(self.unexpected), kept(self.misshapen))

    def check(self, place: str, allow: Iterable[str], hint: str = "") -> None:
        """Reject keys that do not match and are not allowed to differ.

        Raises:
            ModelError: which names them.
        """
        left = self.without(allow)
        parts = [
            f"{len(keys)} {problem}: {listed(keys)}"
            for keys, problem in (
                (left.missing, "weights of the model are missing"),
                (left.unexpected, "weights belong to nothing in the model"),
                (left.misshapen, "weights have another shape"),
            )
            if keys
        ]
        if parts:
            raise ModelError(
                f"{place}: {'; '.join(parts)}.{hint} If that is meant, name them in model.allow (patterns such as"
                f" {(left.missing + left.unexpected + left.misshapen)[0].split(' (')[0]!r})."
            )
