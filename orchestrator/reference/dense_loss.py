"""Dense supervision of a vision encoder by a scene's truth: what lies in each patch.

An answer is one word; a patch grid is 64 small ones. Trained alone, this loss teaches the encoder shapes, colours and
places at a fraction of the cost of answers; beside the answers, it keeps them. Its head is not part of a checkpoint.

Legend: ``B`` images, ``P`` patches, ``D`` width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Int8, Int64
from torch import Tensor, nn
from torch.nn import functional

COVERS = 0.42
"""An object counts as covering a patch whose centre lies within this fraction of its diameter from its centre."""
MAX_CENTRES = 3
"""Numbers of object centres in a patch are told apart up to this many."""
COLUMNS = ("cover_shape", "cover_colour", "n_centres", "centre_shape", "centre_colour")
"""Class targets of a patch, in the order of the target array; then three numbers: dx, dy, size."""


def dense_targets(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    size: Float[np.ndarray, " n"],
    shape: Int[np.ndarray, " n"],
    colour: Int[np.ndarray, " n"],
    grid: int,
) -> tuple[Int8[np.ndarray, "P 5"], Float[np.ndarray, "P 3"]]:
    """Targets of every patch of one image.

    Args:
        x: Object centres, as fractions of the width.
        y: The same, downwards.
        size: Diameters, as fractions of the width.
        shape: Shape index of each object.
        colour: Colour index of each object.
        grid: Patches a side.

    Returns:
        Classes, int8 (grid * grid, 5), columns as `COLUMNS`: 0 in the cover columns is background, -1 in the centre
        columns is "no centre here"; and numbers, float32 (grid * grid, 3): offset of the centre from the patch's
        centre in patches, and diameter as a fraction.
    """
    n_patches = grid * grid
    classes = np.zeros((n_patches, 5), dtype=np.int8)
    classes[:, 3:] = -1
    numbers = np.zeros((n_patches, 3), dtype=np.float32)
    middle = (np.arange(grid) + 0.5) / grid
    far_x, far_y = middle[None, :, None] - x, middle[:, None, None] - y  # (1, grid, n), (grid, 1, n)
    depth = np.sqrt(far_x**2 + far_y**2).reshape(n_patches, -1) / size
    nearest = depth.argmin(1)
    covered = np.take_along_axis(depth, nearest[:, None], 1)[:, 0] < COVERS
    classes[covered, 0] = shape[nearest[covered]] + 1
    classes[covered, 1] = colour[nearest[covered]] + 1
    column, row = np.minimum((x * grid).astype(int), grid - 1), np.minimum((y * grid).astype(int), grid - 1)
    patch = row * grid + column
    np.add.at(classes[:, 2], patch, 1)
    np.minimum(classes[:, 2], MAX_CENTRES, out=classes[:, 2])
    order = np.argsort(size, kind="stable")  # the largest of several is written last
    classes[patch[order], 3] = shape[order]
    classes[patch[order], 4] = colour[order]
    numbers[patch[order], 0] = x[order] * grid - column[order] - 0.5
    numbers[patch[order], 1] = y[order] * grid - row[order] - 0.5
    numbers[patch[order], 2] = size[order]
    return classes, numbers


class DenseHead(nn.Module):
    """One linear layer that reads every target off a patch's state.

    With a ``grid`` it reads the patch's own row and column too. A decoder that has the patches in its sequence knows
    where each one lies and its encoder soon forgets (R2 of a linear read-out of row and column: 0.03 and 0.08); where
    patches are read by cross-attention only, their states must tell.
    """

    def __init__(self, width: int, n_shapes: int, n_colours: int, grid: int | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.sizes: Sequence[int] = (n_shapes + 1, n_colours + 1, MAX_CENTRES + 1, n_shapes, n_colours, 3)
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, sum(self.sizes))
        self.place = nn.Linear(width, 2 * grid) if grid is not None else None

    def forward(
        self, states: Float[Tensor, "B P D"], classes: Int64[Tensor, "B P 5"], numbers: Float[Tensor, "B P 3"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Loss (a scalar) and the accuracy of each class target.

        Args:
            states: Patch states.
            classes: Columns as `COLUMNS`.
            numbers: Offset of the centre and size, as `dense_targets` gives them.
        """
        states = self.norm(states)
        parts = self.read(states).split(tuple(self.sizes), dim=-1)
        loss = states.new_zeros(())
        accuracy = {}
        for i, name in enumerate(COLUMNS):
            target, scores = classes[..., i].flatten(), parts[i].flatten(0, 1)
            loss = loss + functional.cross_entropy(scores, target, ignore_index=-1)
            seen = target > 0 if i < 3 else target >= 0  # background is easy: leave it out of the score
            accuracy[name] = (scores.argmax(-1) == target)[seen].float().mean().item()
        if self.grid is not None and self.place is not None:
            patch = torch.arange(states.shape[1]).repeat(len(states))
            for scores, target in zip(
                self.place(states).flatten(0, 1).chunk(2, dim=-1),
                (patch // self.grid, patch % self.grid),
                strict=True,
            ):
                loss = loss + functional.cross_entropy(scores, target)
            accuracy["column"] = (scores.argmax(-1) == target).float().mean().item()
        centre = classes[..., 3] >= 0
        loss = loss + functional.smooth_l1_loss(parts[5][centre], numbers[centre], beta=0.1)
        return loss, accuracy
