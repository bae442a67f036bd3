"""Questions turned into model inputs once a worker, and put into batches of like length."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from typing import TypeVar

from orchestrator.answers.places import Asked, as_seen, window_of
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch

K = TypeVar("K", bound=Hashable)


class Prepared:
    """Model inputs of questions for one adapter. The least recently used are dropped beyond `max_bytes`.

    Trials of a sweep share most examples (mixtures are nested), so a worker draws and tokenises each only once.
    """

    def __init__(self, adapter: Adapter, instruction: str = "", max_bytes: int = 2**29) -> None:
        """Put `instruction` after every question."""
        self.adapter, self.instruction, self.max_bytes = adapter, instruction, max_bytes
        self._kept: OrderedDict[tuple[str, str, str | None], Batch] = OrderedDict()
        self._bytes = 0

    def prompt(self, asked: Asked) -> Batch:
        """Inputs that end where the answer begins."""
        return self._get(asked, None)

    def with_answer(self, asked: Asked, answer: str | None = None) -> Batch:
        """Inputs with the right answer, or the given one, and `labels` on its tokens alone.

        A right place is that in the picture that the model sees.
        """
        if answer is None:
            answer = as_seen(asked.question, window_of(self.adapter, asked))
        return self._get(asked, answer)

    def _get(self, asked: Asked, answer: str | None) -> Batch:
        question = asked.question
        key = (question.question_id, question.text, answer)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        text = f"{question.text} {self.instruction}".strip()
        example = self.adapter.prepare(asked.image(), text, answer)
        self._kept[key] = example
        self._bytes += n_bytes(example)
        while self._bytes > self.max_bytes and len(self._kept) > 1:
            self._bytes -= n_bytes(self._kept.popitem(last=False)[1])
        return example

    def batches(self, examples: Mapping[K, Batch], size: int) -> Iterator[list[K]]:
        """Keys of `examples` in batches of at most `size` that may be collated, similar lengths together."""
        groups: dict[tuple[str, ...], list[K]] = {}
        for key, example in examples.items():
            groups.setdefault(self.adapter.bucket(example), []).append(key)
        for keys in groups.values():
            keys.sort(key=lambda k: examples[k]["input_ids"].shape[1], reverse=True)
            for start in range(0, len(keys), size):
                yield keys[start : start + size]


def n_bytes(example: Batch) -> int:
    """Bytes of an example's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in example.values())
