"""What identifies a model in every digest: its weights, its adapter, and the text that it is really shown.

The text is what the checkpoint's own template writes around a question. Of a shipped model it is rendered from the
folder alone, so that planning needs no torch; of any other the checkpoint's own processor writes it, once a process.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from orchestrator.config import ModelConfig
from orchestrator.errors import ModelError
from orchestrator.models.catalogue import ADAPTER_GROUP, Entry, check_lora, digest_folder, is_shipped, resolve
from orchestrator.models.checkpoint import read_json
from orchestrator.models.cuts import known_cut
from orchestrator.models.known_config import read_config
from orchestrator.models.prompts import family_rules, prompt_fingerprint, render
from orchestrator.plugins import registered_by

QUESTION, ANSWER = "{question}", "{answer}"
"""What stands for a question and an answer in the texts."""
UNKNOWN = "not known here"
"""What stands for the texts where the checkpoint's files are not at hand."""


def fingerprint(config: ModelConfig) -> dict[str, str]:
    """Return what identifies a model and what it is shown: weights, adapter, the text around a question, the fit.

    The text is there as it is written (`prompt_texts`), with the rules that write it (`rendering`). Weights are a
    content digest of a folder, or repository and revision of a hub model. Pictures are resized by Pillow, or by
    torchvision (`pictures_by`) where it is installed. It goes into stage digests and never holds a
    path. An unpinned hub model has revision "unpinned". An adapter of another package is named with its version.
    """
    entry = resolve(config)
    if entry.folder is not None:
        parts = {"content": digest_folder(entry.folder)}
    else:
        parts = {"repository": str(entry.repository), "revision": entry.revision or "unpinned"}
    parts |= prompt_texts(config, entry, parts.get("content", ""))
    parts["rendering"] = prompt_fingerprint(config, entry.family)
    parts["fit"] = config.fit
    if entry.family != "molmo" and importlib.util.find_spec("torchvision") is not None:
        parts["pictures_by"] = "torchvision"  # where it is installed transformers resizes by it, to other pixels
    if known_cut(config) is not None:
        parts["places"] = "of what is seen"  # points and boxes of training are those of the padded or cut picture
    if config.adapter is not None:
        parts["adapter"] = digest_folder(check_lora(config.adapter))
    # A repository whose family is not known yet may turn out to be any of them.
    families = registered_by(ADAPTER_GROUP, [entry.family]) if entry.family else registered_by(ADAPTER_GROUP)
    if families:
        parts["read_by"] = ", ".join(f"{family}: {package}" for family, package in sorted(families.items()))
    return parts


def prompt_texts(config: ModelConfig, entry: Entry, state: str = "") -> dict[str, str]:
    """Return the texts around a question: `prompt`, `prompt_without_image`, and `answer`, what follows the prompt.

    Each is `UNKNOWN` where the checkpoint's files are not at hand, or its processor cannot be made of them here.

    Args:
        state: what the files' content follows from; equal texts are not made twice.
    """
    return dict(_texts(entry, config.date, config.trust_remote_code, state))


def example_prompt(model: Mapping[str, Any], question: str) -> str:
    """Return the prompt of a question, from what identifies a model (`fingerprint`); empty if not known."""
    text = str(model.get("prompt", ""))
    return text.replace(QUESTION, question) if QUESTION in text else ""


@lru_cache(maxsize=64)
def _texts(entry: Entry, date: str, trust: bool, state: str) -> tuple[tuple[str, str], ...]:  # noqa: ARG001
    try:
        family, processor = _processor(entry, trust)
        written = family_rules(family)["written"]
        texts = {"prompt": True, "prompt_without_image": False}
        rendered = {key: render(processor, family, QUESTION, image=image, date=date)[0] for key, image in texts.items()}
        answer = render(processor, family, QUESTION, image=True, answer=ANSWER, date=date)[1]
    except Exception:  # what is wrong with its files is said by `check.check_model`
        return tuple((key, UNKNOWN) for key in ("prompt", "prompt_without_image", "answer"))
    around = {key: written.replace(QUESTION, text) for key, text in rendered.items()}
    return (*around.items(), ("answer", answer))


def _processor(entry: Entry, trust: bool) -> tuple[str, Any]:
    """Return a model's family and what renders its template; None where its template is the family's own."""
    if entry.folder is None and not files_here(entry):
        raise ModelError(f"{entry.name}: no files of its processor on this machine")
    family = entry.family or str(read_config(entry).model_type)
    if family_rules(family)["own_template"]:
        return family, None
    if entry.folder is not None and (entry.folder / "chat_template.jinja").is_file() and is_shipped(entry.folder):
        return family, FolderTemplate(entry.folder)
    from orchestrator.models.loading import load_processor, with_hub_errors

    where = {"revision": entry.revision, "trust_remote_code": trust}
    return family, with_hub_errors(entry, lambda: load_processor(entry, **where))


def files_here(entry: Entry) -> bool:
    """Return whether the small files of a hub model's processor lie in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    names = ("processor_config.json", "preprocessor_config.json")
    return any(isinstance(try_to_load_from_cache(entry.source, n, revision=entry.revision), str) for n in names)


class FolderTemplate:
    """The chat template of a checkpoint folder, rendered without transformers; for those that this package ships."""

    def __init__(self, folder: Path) -> None:
        self.chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        named = read_json(folder / "tokenizer_config.json", str(folder))
        self.specials = {key: text for key, text in named.items() if key.endswith("_token") and isinstance(text, str)}

    def apply_chat_template(self, turns: Any, *, add_generation_prompt: bool, tokenize: bool, **_: Any) -> str:
        """Return the conversation as text; see transformers' method of this name."""
        assert not tokenize
        template = _environment().from_string(self.chat_template)
        return template.render(messages=turns, add_generation_prompt=add_generation_prompt, **self.specials)


@cache
def _environment() -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
