"""Fake `cuda` tensors without a CUDA build of torch: real code runs, nothing is computed.

`FakeTensorMode` gives every operation's shapes and raises if a value is needed (`.item()`, `int(tensor)`, a Boolean
test of a tensor, a data-dependent shape), which would synchronize a GPU. A CPU build of torch cannot index such tensors
with brackets, as that queries the CUDA device: `Indexing` replaces it by other operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from orchestrator.capture import recorder, token_layout


class Indexing(TorchFunctionMode):
    """Brackets on `cuda` tensors as `select`, `slice`, `unsqueeze` and `index`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and args[0].device.type == "cuda":
            return _index(args[0], args[1])
        if func is Tensor.__setitem__ and args[0].device.type == "cuda":
            part = _index(args[0], args[1])
            torch.ops.aten.copy_(part, args[2]) if isinstance(args[2], Tensor) else part.fill_(args[2])
            return None
        if func is Tensor.copy_:
            return torch.ops.aten.copy_(*args, **(kwargs or {}))
        if func is Tensor.contiguous:
            return torch.clone(args[0], memory_format=torch.contiguous_format)
        if func is Tensor.__invert__:
            return torch.bitwise_not(args[0])
        return func(*args, **(kwargs or {}))


def _index(tensor: Tensor, key: Any) -> Tensor:
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in [k for k in keys if not isinstance(k, Tensor)]:
        place = next(i for i, k in enumerate(keys) if k is Ellipsis)
        missing = tensor.ndim - sum(k is not None and k is not Ellipsis for k in keys)
        keys[place : place + 1] = [slice(None)] * missing
    dim = 0
    tensors: dict[int, Tensor] = {}
    for k in keys:
        if k is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(k, int):
            tensor = tensor.select(dim, k)
            continue
        elif isinstance(k, slice):
            if k != slice(None):
                tensor = torch.ops.aten.slice(tensor, dim, k.start, k.stop, k.step or 1)
        elif isinstance(k, Tensor) and k.dtype != torch.bool:
            tensors[dim] = k
        else:
            tensors[dim] = torch.as_tensor(k, device=tensor.device)
        dim += 1
    if not tensors:
        return tensor
    return torch.ops.aten.index(tensor, [tensors.get(i) for i in range(max(tensors) + 1)])


def _layout(masks: Any, device: torch.device, *more: Any) -> token_layout.TokenLayout:
    """`make_layout`, whose work on the host needs values, with its results sent to the fake device."""
    with _disable_current_modes(), mock.patch.object(token_layout, "_send", lambda tensor, _: tensor):
        layout = token_layout.make_layout(masks, device, *more)
    groups = {
        name: replace(group, device_counts=group.device_counts.to(device), ordinals=group.ordinals.to(device))
        for name, group in layout.groups.items()
    }
    return replace(layout, places=layout.places.to(device), groups=groups)


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Inside the block new `cuda` tensors are fake; a recorder's layout is made of the real masks of its states."""
    with (
        mock.patch.object(recorder, "make_layout", _layout),
        FakeTensorMode(allow_non_fake_inputs=True),
        Indexing(),
    ):
        yield
