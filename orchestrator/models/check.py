"""Is a model whole, and does it take what a study will ask of it? One function for `doctor`, `plan` and `run`.

Nothing is computed and no tensor of weights is read: the model is built on torch's meta device, the names and shapes
of all its weights are held against its files, and one picture and one question go through its processor.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from orchestrator.config import ModelConfig
from orchestrator.errors import ModelError
from orchestrator.models.catalogue import Entry, check_lora, digest_folder, is_shipped, resolve
from orchestrator.models.extras import check_extras
from orchestrator.models.identity import fingerprint
from orchestrator.models.planning import check_context
from orchestrator.models.prompts import unknown_words
from orchestrator.models.size_limits import check_sizes
from orchestrator.models.stacks import TEXT_TOKENS

CHARACTERS = 6
"""Characters that a token holds at most, on average: of a model that is not here, texts count for so little."""
EXAMPLE = "a"
"""A question that any tokeniser has a token for."""


def check_model(
    config: ModelConfig,
    *,
    questions: tuple[str, ...] = (),
    text_only: bool = False,
    size: tuple[int, int] = (336, 336),
    words: str = "",
    n_images: int = 1,
) -> bool:
    """Refuse a model that is not whole, or does not take an example of what it will be asked.

    Args:
        questions: texts that will be asked of a picture; `capture.prompt`, say.
        text_only: whether questions without a picture will be asked.
        size: (height, width) of the pictures, px.
        words: words of further questions, for which the tokeniser must have tokens.
        n_images: most pictures of a question.

    Returns:
        Whether the weights are at hand; if not, only what is known without them was checked.

    Raises:
        ModelError: which names what is wrong and where.
    """
    entry = resolve(config)
    check_extras(entry)
    check_sizes(entry)
    if config.adapter is not None:
        check_lora(config.adapter)
    here = weights_here(entry)
    # Of a model that is here the picture alone is counted: its own tokenizer counts the text below.
    assumed = max(TEXT_TOKENS, *(len(text) // CHARACTERS for text in (*questions, "")))
    check_context(config, *size, text_tokens=0 if here else assumed, n_pictures=n_images)
    if not here:
        return False
    if entry.folder is not None and config.adapter is None and is_shipped(entry.folder):
        # A test holds what else is asked here of these models.
        n_tokens = check_words(entry.name, entry.folder, (*questions, *words.split()))
        check_context(config, *size, text_tokens=n_tokens, n_pictures=n_images)
        return True
    _check(config, questions, text_only, size, words, n_images, str(_state(config, entry)))
    return True


_WORDS_OF_SHIPPED = (
    " A shipped model knows the words of its own questions alone ('how many red circles are there ?'): ask in them, or"
    " name another model (model.name)."
)


def check_words(name: str, folder: Path, texts: tuple[str, ...]) -> int:
    """Refuse texts with words that a folder's tokeniser has no token for, without transformers.

    Returns:
        The number of tokens of the longest text.

    Raises:
        ModelError: which names the word.
    """
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        return 0
    longest = 0
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    unknown = getattr(words.model, "unk_token", None)
    image = next((t.content for t in words.get_added_tokens_decoder().values() if "image" in t.content), None)
    for text in texts:
        if image is not None and image in text:
            raise ModelError(f"{name}: {text!r} holds the image placeholder {image!r}; leave it out.")
        if unknown in (encoded := words.encode(text)).tokens:
            start, end = encoded.offsets[encoded.tokens.index(unknown)]
            hint = _WORDS_OF_SHIPPED if is_shipped(folder) else ""
            raise ModelError(f"{name}: the tokeniser has no token for {text[start:end]!r} in {text!r}.{hint}")
        longest = max(longest, len(encoded.ids))
    return longest


def _state(config: ModelConfig, entry: Entry) -> object:
    """Return what a finished check holds for: the same files and settings need no second look."""
    adapter = digest_folder(check_lora(config.adapter)) if config.adapter else None
    return digest_folder(entry.folder) if entry.folder else fingerprint(config), adapter


@lru_cache(maxsize=64)
def _check(
    config: ModelConfig,
    questions: tuple[str, ...],
    text_only: bool,
    size: tuple[int, int],
    words: str,
    n_images: int,
    _: str,
) -> None:
    from orchestrator.models.loading import is_panic, load_adapter
    from orchestrator.models.processor_fields import check_example

    adapter, entry = load_adapter(config, "meta"), resolve(config)
    if unknown := unknown_words(adapter.tokenizer, words):
        raise ModelError(f"{entry.name}: the tokeniser has no token for {unknown[0]!r}, a word of the questions.")
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels = f"{size[1]} x {size[0]} px"
    asked, refused = f"a picture of {pixels}", f"does not take a {pixels} picture and a question"
    try:
        for question in questions or (EXAMPLE,):
            example = adapter.prepare(picture, question)
        check_example(entry, adapter.config, example, *size)
        question = questions[0] if questions else EXAMPLE
        if n_images > 1:
            asked, refused = f"{n_images} pictures of {pixels}", f"does not take {n_images} pictures and a question"
            adapter.prepare([picture] * n_images, question)
        if text_only:
            asked, refused = "no picture", "takes no question without a picture"
            adapter.prepare(None, question)
    except ModelError as error:
        shown = question if len(question) <= 80 else f"{question[:80]}... ({len(question)} characters)"
        raise ModelError(f"{error} Tried with {asked} and {shown!r}.") from error
    except BaseException as error:  # a processor may fail in any way at all; what is wanted is its name
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        what = f"{type(adapter.processor).__name__} {refused}"
        raise ModelError(f"{entry.name}: {what}: {type(error).__name__}: {error}") from error


def weights_here(entry: Entry) -> bool:
    """Return whether a model's weights can be loaded without a download."""
    if entry.folder is not None:
        return True
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json")
    found = [try_to_load_from_cache(entry.source, name, revision=entry.revision) for name in names]
    return any(isinstance(path, str) for path in found)
