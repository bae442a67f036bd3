"""Batches that fit in memory: by a token budget, and by smaller batches after out-of-memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache

from orchestrator.models.batching import Batch

K = TypeVar("K")

SAFETY = 0.8
"""Share of the free memory that a batch may use if its size is set by memory."""


@dataclass
class Limit:
    """Largest cost of a batch to try; lowered after out-of-memory and kept between calls."""

    most: float = float("inf")


def retry_with_smaller_batch(
    chunks: Iterable[Sequence[K]],
    work: Callable[[Sequence[K]], None],
    *,
    cost: Callable[[Sequence[K]], float] = len,
    limit: Limit | None = None,
    too_large: Callable[[K], None] | None = None,
) -> None:
    """Call `work` on each chunk, in order; after out-of-memory a chunk is halved, recursively.

    Args:
        cost: a measure of memory: the number of examples, or their tokens with padding.
        limit: largest cost known to fit; larger chunks are halved at once. A failed chunk sets it to half its cost.
        too_large: called with an example that does not fit on its own.

    Raises:
        the out-of-memory error, if a single example does not fit and `too_large` is None.
    """
    limit = limit or Limit()
    todo = deque(list(chunk) for chunk in chunks)
    while todo:
        chunk = todo.popleft()
        if len(chunk) > 1 and cost(chunk) > limit.most:
            todo.extendleft(_halves(chunk))
            continue
        error = _attempt(work, chunk)
        if error is None:
            continue
        # Outside the handler, whose traceback references the tensors of the failed attempt.
        clear_device_cache(garbage_collection=True)
        if len(chunk) > 1:
            limit.most = cost(chunk) / 2
            todo.appendleft(chunk)
        elif too_large is not None:
            too_large(chunk[0])
        else:
            raise error


def _halves(chunk: list[K]) -> list[list[K]]:
    """Both halves, the second first, in the order of `extendleft`."""
    middle = (len(chunk) + 1) // 2
    return [chunk[middle:], chunk[:middle]]


def _attempt(work: Callable[[Sequence[K]], None], chunk: Sequence[K]) -> BaseException | None:
    try:
        work(chunk)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return error.with_traceback(None)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU, or the CPU's allocator, ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text or "CUDA out of memory" in text or "CUBLAS_STATUS_ALLOC_FAILED" in text


def padded_tokens(examples: Sequence[Batch]) -> int:
    """Sequence positions of a batch of these examples, with padding."""
    return len(examples) * max(example["input_ids"].shape[1] for example in examples)


def pack(examples: Mapping[K, Batch], keys: Sequence[K], most_images: int, most_tokens: float) -> list[list[K]]:
    """Pack keys into batches of at most `most_images` examples and `most_tokens` padded positions, sorted by length.

    An example longer than the budget is a separate batch.
    """
    order = sorted(keys, key=lambda key: examples[key]["input_ids"].shape[1], reverse=True)
    batches: list[list[K]] = []
    longest = 0
    for key in order:
        length = examples[key]["input_ids"].shape[1]
        if not batches or len(batches[-1]) >= most_images or (len(batches[-1]) + 1) * longest > most_tokens:
            batches.append([])
            longest = length
        batches[-1].append(key)
    return batches


class TokenBudget:
    """Token budget of a batch on a GPU, measured from the memory of the first batches.

    Use as a context around a pass; `most` is the measured budget, or the initial value before the measurement.
    """

    def __init__(self, device: torch.device, start: float) -> None:
        self.device, self.most, self._resting = device, start, 0
        self._known = device.type != "cuda"

    def __enter__(self) -> TokenBudget:
        if not self._known:
            torch.cuda.reset_peak_memory_stats(self.device)
            self._resting = torch.cuda.memory_allocated(self.device)
        return self

    def measured(self, tokens: int) -> None:
        """Take note of a pass of `tokens` padded tokens that has been launched."""
        if self._known:
            return
        used = torch.cuda.max_memory_allocated(self.device) - self._resting
        free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device) - self._resting
        self.most = tokens_that_fit(free, used, tokens)
        self._known = True

    def __exit__(self, *_: object) -> None:
        return None


def tokens_that_fit(free: int, used: int, tokens: int) -> float:
    """Number of tokens for `free` bytes, if `tokens` used `used` bytes."""
    return max(tokens, SAFETY * free / max(1, used) * tokens)
