"""`vtsweep pack` and `vtsweep push`: export of a study as a folder, and its upload to the Hugging Face hub.

Tables are Parquet, kept token features safetensors, adapters in peft's format; a card describes methods and findings.
`pack` sends nothing; `push` uploads the folder.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save as save_tensors

from orchestrator.errors import ConfigError, StorageError
from orchestrator.progress import Progress
from orchestrator.report.answer import answers
from orchestrator.report.collect import gather_results
from orchestrator.report.model import slugify
from orchestrator.report.words import summary
from orchestrator.scrub import has_secret, scrub, scrub_tree
from orchestrator.store.filesystem import Storage
from orchestrator.store.stage_folder import Stage
from orchestrator.store.study_record import TABLE_STAGE, Study

CARD = "README.md"
_LARGEST_PART = 2_000_000_000
"""Maximum bytes of one safetensors file of features."""


@dataclass(frozen=True)
class Packed:
    """A packed study: its folder, the files in it, and their bytes."""

    folder: str
    files: tuple[str, ...]
    n_bytes: int


def pack_study(
    study: Study,
    folder: str,
    *,
    licence: str = "other",
    features: bool = True,
    pictures: bool | None = None,
    quiet: bool = False,
) -> Packed:
    """Write a study's tables, features, adapters, report and card into `folder`.

    Args:
        licence: licence identifier of the hub, for example `cc-by-4.0`.
        features: include the kept token features.
        pictures: include the report, whose token maps show images of the data set; None includes it only if all images
            are drawn scenes, since other images may not be redistributable.

    Raises:
        StorageError: the study has no finished stage, or the folder cannot be written.
        ConfigError: the folder contains other files.
    """
    target = Storage(folder)
    if (existing := target.files("")) and CARD not in existing:
        raise ConfigError(f"{folder!r} holds other files; name an empty folder, or one that was packed before")
    written: dict[str, int] = {}

    def put(name: str, data: bytes) -> None:
        target.write(name, data)
        written[name] = len(data)

    with Progress(f"pack {study.name}", None, "files", quiet=quiet) as progress:
        for name, data in _contents(study, features, pictures):
            put(name, data)
            progress.advance(1, name)
        if not any(name.startswith("tables/") for name in written):
            raise StorageError(
                f"study {study.name!r} has no finished stage to pack; vtsweep status {study.name} says more"
            )
        card = _card(study, licence, written)
        if has_secret(card):
            card = scrub(card)
        put(CARD, card.encode())
    return Packed(target.locate(""), tuple(sorted(written)), sum(written.values()))


def _contents(study: Study, features: bool, pictures: bool | None) -> Iterator[tuple[str, bytes]]:
    yield "study.json", json.dumps(scrub_tree(study.record), indent=1, sort_keys=True, ensure_ascii=False).encode()
    for table, stage in TABLE_STAGE.items():
        if stage not in study.stages:
            continue
        try:
            frame = study.table(table).collect()
        except StorageError:
            continue
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="zstd")
        yield f"tables/{table}.parquet", buffer.getvalue()
    for view in study.views("capture") if features and "capture" in study.stages else []:
        if view.stage.is_done():
            yield from _features(f"features/{slugify(view.label)}", view.stage)
    for view in study.views("finetune") if "finetune" in study.stages else []:
        for name in view.stage.store.files("adapter") if view.stage.is_done() else []:
            yield f"adapters/{slugify(view.label)}/{name}", view.stage.read_file(f"adapter/{name}")
    scenes_alone = all(view.run.data.source == "scenes" for stage in study.stages for view in study.views(stage))
    if pictures or (pictures is None and scenes_alone):
        for folder in ("", "figures"):
            yield from _files(study.folder.sub("report"), folder)


def _files(report: Storage, folder: str) -> Iterator[tuple[str, bytes]]:
    for name in report.files(folder):
        path = f"{folder}/{name}".lstrip("/")
        if name.endswith((".html", ".png", ".svg")):
            yield f"report/{path}", report.read(path)
        elif "." not in name:
            yield from (_files(report, path) if path != "figures" else ())


def _features(folder: str, stage: Stage) -> Iterator[tuple[str, bytes]]:
    """One or more safetensors files per tap: (images, layers, positions, width) in the captured precision."""
    shards = stage.finished_shards()
    first = next(iter(shards.values()), None)
    if first is None:
        return
    for name in [key for key in first["arrays"] if key.startswith("features/")]:
        tap = name.removeprefix("features/")
        about = {"axes": json.dumps(first["extra"]["features"].get(tap, {})), "tap": tap, "stage": stage.digest}
        parts: list[np.ndarray] = []
        number = 0
        for array in stage.arrays(name):
            if parts and sum(a.nbytes for a in parts) + array.nbytes > _LARGEST_PART:
                yield f"{folder}/{tap}-{number:05d}.safetensors", _tensors(parts, about)
                parts, number = [], number + 1
            parts.append(np.asarray(array))
        yield f"{folder}/{tap}-{number:05d}.safetensors", _tensors(parts, about)


def _tensors(parts: list[np.ndarray], about: Mapping[str, str]) -> bytes:
    return bytes(save_tensors({"features": np.ascontiguousarray(np.concatenate(parts))}, metadata=dict(about)))


def _card(study: Study, licence: str, written: Mapping[str, int]) -> str:
    """The data set card: description, methods, findings, licence."""
    results = gather_results(study)
    sections = summary(results)
    record = study.record
    models = sorted({view.run.model.name for stage in study.stages for view in study.views(stage)})
    head = {
        "license": licence,
        "tags": ["vtsweep", "vision-language", "visual-tokens", "interpretability"],
        "pretty_name": study.name,
        "configs": [{"config_name": Path(n).stem, "data_files": n} for n in sorted(written) if n.endswith(".parquet")],
    }
    parts = [f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n", f"# {study.name}\n", f"{record['description']}\n"]
    parts += [f"**{answer.sentence}**\n" for answer in answers(results, sections)]
    parts.append("## How it was measured\n")
    sources = sorted({view.run.data.source for stage in study.stages for view in study.views(stage)})
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    parts.append(
        f"Models: {', '.join(models)}. Images: {', '.join(sources)}. Stages: {', '.join(study.stages)}. "
        f"With {versions}.\n\n```bash\n{record['command']}\n```\n"
    )
    parts.append("## Findings\n")
    for heading, statements in sections:
        parts.append(f"### {heading}\n")
        parts += [f"- {f'*{s.verdict}*: ' if s.verdict else ''}{s.text} ({s.evidence})" for s in statements]
        parts.append("")
    parts.append("## Files\n")
    parts += [
        "- `tables/*.parquet`: every table of the study; columns `point`, `model`, `source` say where a row is from",
        "- `features/*/*.safetensors`: kept token features, axes in the files' metadata",
        "- `adapters/*/`: LoRA adapters, for `peft.PeftModel.from_pretrained`",
        "- `study.json`: settings of every point; `report/`: the page with its figures\n",
        "## Licence\n",
        f"These results: {licence}. Models and images keep the licences of their publishers; no weights of a base "
        "model and no images of other data sets are included.\n",
    ]
    return "\n".join(parts)


def push_study(folder: str, repo: str, *, private: bool = True, api: Any = None) -> str:
    """Upload a packed study as a data set of the Hugging Face hub; returns its address.

    Args:
        folder: written by `pack_study`.
        repo: `OWNER/NAME`.
        private: whether the repository is private.
        api: a `huggingface_hub.HfApi`; None for one with the user's login.

    Raises:
        ConfigError: the folder is not a packed study, or `repo` is not a valid repository name.
        StorageError: the hub cannot be reached or rejects the upload.
    """
    if not (Path(folder) / CARD).is_file() or not (Path(folder) / "study.json").is_file():
        raise ConfigError(f"{folder!r} holds no packed study; run vtsweep pack first")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ConfigError(f"repository {repo!r}: expected OWNER/NAME")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, repo_type="dataset", commit_message="Results of a vtsweep study"
        )
    except Exception as error:  # the client raises unrelated types: no login, no network, unknown owner
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StorageError(f"{repo}: the hub does not take it: {scrub(reason)}. Log in with `hf auth login`") from error
    return f"https://huggingface.co/datasets/{repo}"
