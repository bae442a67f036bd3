"""The exact text around a question, by family, and the question's own tokens inside it.

A processor's own chat template is used where it has one; `prompts.yaml` publishes the text for those that have none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

import yaml

from orchestrator.config import ModelConfig
from orchestrator.errors import ModelError

VERSION = 2
"""Raised whenever the same template would be rendered, or an answer closed, in another way; part of every digest."""


@cache
def templates() -> dict[str, Any]:
    """Return `prompts.yaml`: for each family its template without a chat template, and its answer rules."""
    text = resources.files("orchestrator.models").joinpath("prompts.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def family_rules(family: str) -> dict[str, Any]:
    """Return a family's rules, its own over the defaults."""
    table = templates()
    return {**table["default"], **table["families"].get(family, {})}


def render(
    processor: Any, family: str, question: str, *, image: int, answer: str | None = None, date: str | None = None
) -> tuple[str, str]:
    """Return (prompt, answer continuation) as text; the second is empty without an answer.

    The continuation is what the chat template writes after the prompt; it holds the answer, and the template's end of
    a turn if it has one.

    Args:
        image: number of images, or whether there is one; they stand before the question, in order.
        date: the day (ISO) that templates take for today, a constant of the study.
    """
    template = getattr(processor, "chat_template", None)
    if not template or family_rules(family)["own_template"]:
        return _render_plain(family, question, image=image, answer=answer)
    pinned = {"tokenize": False, **pinned_date(template, date or ModelConfig().date)}
    content = [{"type": "image"}] * image
    turns = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True, **pinned)
    if answer is None:
        return prompt, ""
    turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    whole = processor.apply_chat_template(turns, add_generation_prompt=False, **pinned)
    if whole.startswith(prompt) and answer in whole[len(prompt) :]:
        return prompt, whole[len(prompt) :]
    # Templates whose generation prompt differs from an assistant turn (an opened thought, say): the answer alone.
    return prompt, answer


def pinned_date(template: Any, date: str) -> dict[str, str]:
    """Return the template with its calls for the date of today answered, as a keyword; empty if it has none.

    transformers gives templates a function `strftime_now`, and takes no other one in its place.

    Raises:
        ModelError: if the format of the date is not written out in the template.
    """
    if not isinstance(template, str) or "strftime_now" not in template:
        return {}
    day = datetime.fromisoformat(date)
    found = re.sub(r"strftime_now\(\s*([\"'])(.*?)\1\s*\)", lambda call: json.dumps(day.strftime(call[2])), template)
    if "strftime_now(" in found:
        raise ModelError(
            "the chat template writes today's date in a form that is not known before; it cannot be pinned"
        )
    return {"chat_template": found}


def _render_plain(family: str, question: str, *, image: int, answer: str | None) -> tuple[str, str]:
    rules = family_rules(family)
    if "template" not in rules:
        raise ModelError(
            f"{family}: the processor has no chat template and prompts.yaml has no text for this family; add one there."
        )
    token = rules["image"] * image
    template = rules["template"] if image else rules.get("template_without_image", rules["template"])
    prompt = template.format(image=token, question=question)
    if answer is None:
        return prompt, ""
    return prompt, rules["answer_prefix"] + answer


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """Return the words of a text that a tokeniser has no token for, and so would read as one unknown thing."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown not in tokenizer(text, add_special_tokens=False)["input_ids"]:
        return []
    words = [word for word in text.split() if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]
    return words or [text]


def prompt_fingerprint(config: ModelConfig, family: str | None) -> str:
    """Return a digest of what decides the text around a question beside the checkpoint's own template."""
    rules = templates() if family is None else family_rules(family)
    text = json.dumps({"version": VERSION, "date": config.date, "rules": rules}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def question_span(tokenizer: Any, ids: Sequence[int], question: str, images: set[int]) -> tuple[int, int]:
    """Return (start, end) of the question's own tokens inside a prompt's ids.

    The shortest run of tokens without an image placeholder whose decoded text holds the question, spaces aside, and
    the last one if there are several. It needs no knowledge of the template, and it is checked by its own definition.

    Raises:
        ModelError: if no run decodes to the question (a tokeniser that loses text).
    """
    encoded = tokenizer(question, add_special_tokens=False)["input_ids"]
    if not encoded:
        raise ModelError(f"The question {question!r} has no tokens.")
    wanted = {_squeeze(question), _squeeze(tokenizer.decode(encoded))}
    for start, end in reversed(_runs(ids, images)):
        run = list(ids[start:end])
        for text in wanted:
            if text and text in _squeeze(tokenizer.decode(run)):
                return _shortest(tokenizer, run, text, start)
    raise ModelError(
        f"The question {question!r} is not in the prompt that the processor made:"
        f" {tokenizer.decode([i for i in ids if i not in images])[-200:]!r}."
    )


def _shortest(tokenizer: Any, run: Sequence[int], text: str, offset: int) -> tuple[int, int]:
    """Return the bounds of the shortest part of `run` that holds `text`, by bisection: holding is monotone."""

    def last(low: int, high: int, holds: Any) -> int:
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low

    start = last(0, len(run), lambda i: text in _squeeze(tokenizer.decode(run[i:])))
    cut = last(0, len(run) - start, lambda n: text in _squeeze(tokenizer.decode(run[start : len(run) - n])))
    return offset + start, offset + len(run) - cut


def _runs(ids: Sequence[int], images: set[int]) -> list[tuple[int, int]]:
    """Return the (start, end) of each stretch of ids without an image placeholder."""
    bounds = [-1, *(i for i, token in enumerate(ids) if token in images), len(ids)]
    return [(a + 1, b) for a, b in pairwise(bounds) if b > a + 1]


def _squeeze(text: str) -> str:
    return "".join(text.split())
