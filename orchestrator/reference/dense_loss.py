"""Dense supervision by scene ground truth: content of each patch, and referent of each word of a question.

An answer supervises one word, a patch grid 64 patches. In the first phase this loss trains shapes, colours and
positions in the encoder at a fraction of the cost of answers; in the second phase it preserves them. The heads are not
part of a checkpoint.

Shapes: ``B`` images, ``P`` patches, ``D`` width, ``M`` words that name an object or group.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Int8, Int64
from torch import Tensor, nn
from torch.nn import functional

COVERS = 0.42
"""An object covers a patch if the distance of their centres is at most this fraction of the object's diameter."""
MAX_CENTRES = 3
"""Largest distinguished number of object centres in a patch."""
COLUMNS = ("cover_shape", "cover_colour", "n_centres", "centre_shape", "centre_colour")
"""Class targets of a patch, in the order of the target array; followed by five numbers: dx, dy, size, x, y."""


def dense_targets(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    size: Float[np.ndarray, " n"],
    shape: Int[np.ndarray, " n"],
    colour: Int[np.ndarray, " n"],
    grid: int,
) -> tuple[Int8[np.ndarray, "P 5"], Float[np.ndarray, "P 5"]]:
    """Targets of every patch of one image.

    Args:
        x: Object centres, as fractions of the width.
        y: Object centres, as fractions of the width, downwards.
        size: Diameters, as fractions of the width.
        shape: Shape index of each object.
        colour: Colour index of each object.
        grid: Patches per side.

    Returns:
        Classes, int8 (grid * grid, 5), columns as `COLUMNS`: 0 in the cover columns is background, -1 in the centre
        columns is "no centre here"; and numbers, float32 (grid * grid, 5): offset of the centre from the patch's
        centre in patches, and diameter as a fraction, if a centre is in the patch; and for every patch the position, as
        fractions, of the object centred in it, else of the object that covers it, else of the patch.
    """
    n_patches = grid * grid
    classes = np.zeros((n_patches, 5), dtype=np.int8)
    classes[:, 3:] = -1
    numbers = np.zeros((n_patches, 5), dtype=np.float32)
    middle = (np.arange(grid) + 0.5) / grid
    numbers[:, 3], numbers[:, 4] = np.tile(middle, grid), np.repeat(middle, grid)
    far_x, far_y = middle[None, :, None] - x, middle[:, None, None] - y  # (1, grid, n), (grid, 1, n)
    depth = np.sqrt(far_x**2 + far_y**2).reshape(n_patches, -1) / size
    nearest = depth.argmin(1)
    covered = np.take_along_axis(depth, nearest[:, None], 1)[:, 0] < COVERS
    classes[covered, 0] = shape[nearest[covered]] + 1
    classes[covered, 1] = colour[nearest[covered]] + 1
    numbers[covered, 3], numbers[covered, 4] = x[nearest[covered]], y[nearest[covered]]
    column, row = np.minimum((x * grid).astype(int), grid - 1), np.minimum((y * grid).astype(int), grid - 1)
    patch = row * grid + column
    np.add.at(classes[:, 2], patch, 1)
    np.minimum(classes[:, 2], MAX_CENTRES, out=classes[:, 2])
    order = np.argsort(size, kind="stable")  # of several objects the largest is written last
    classes[patch[order], 3] = shape[order]
    classes[patch[order], 4] = colour[order]
    numbers[patch[order], 0] = x[order] * grid - column[order] - 0.5
    numbers[patch[order], 1] = y[order] * grid - row[order] - 0.5
    numbers[patch[order], 2] = size[order]
    numbers[patch[order], 3], numbers[patch[order], 4] = x[order], y[order]
    return classes, numbers


class DenseHead(nn.Module):
    """Linear head that predicts every target from a patch's state.

    The position is a target of every patch: without it, the encoder loses positions (R2 of a linear probe of row and
    column: 0.03 and 0.08), as the decoder knows the order of patches in its sequence. To compare positions of objects,
    the decoder needs them as numbers.
    """

    def __init__(self, width: int, n_shapes: int, n_colours: int) -> None:
        super().__init__()
        self.sizes: Sequence[int] = (n_shapes + 1, n_colours + 1, MAX_CENTRES + 1, n_shapes, n_colours, 5)
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, sum(self.sizes))

    def forward(
        self, states: Float[Tensor, "B P D"], classes: Int64[Tensor, "B P 5"], numbers: Float[Tensor, "B P 5"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Loss (a scalar), the accuracy of each class target and the mean error of positions in hundredths.

        Args:
            states: Patch states.
            classes: Columns as `COLUMNS`.
            numbers: As returned by `dense_targets`.
        """
        parts = self.read(self.norm(states)).split(tuple(self.sizes), dim=-1)
        loss = states.new_zeros(())
        scores = {}
        for i, name in enumerate(COLUMNS):
            target, logits = classes[..., i].flatten(), parts[i].flatten(0, 1)
            loss = loss + functional.cross_entropy(logits, target, ignore_index=-1)
            scored = target > 0 if i < 3 else target >= 0  # background is easy: excluded from the score
            scores[name] = (logits.argmax(-1) == target)[scored].float().mean().item()
        centre = classes[..., 3] >= 0
        loss = loss + functional.smooth_l1_loss(parts[5][..., :3][centre], numbers[..., :3][centre], beta=0.1)
        place, true = parts[5][..., 3:], numbers[..., 3:]
        is_object = centre | (classes[..., 0] > 0)
        for chosen, weight in ((is_object, 4.0), (~is_object, 1.0)):
            if chosen.any():
                loss = loss + weight * functional.smooth_l1_loss(place[chosen], true[chosen], beta=0.05)
        scores["place_error"] = 100 * (place[is_object] - true[is_object]).norm(dim=-1).mean().item()
        return loss, scores


class WordHead(nn.Module):
    """Linear head that predicts properties of the ``n_things`` referents of a word from its state.

    For each referent: position (x, y) of the only object of that name, as fractions, and log2(1 + number of objects of
    that name). Relations compare two positions and comparisons two numbers: both are differences of these targets.
    """

    def __init__(self, width: int, n_things: int = 1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, 3 * n_things)

    def forward(
        self, states: Float[Tensor, "M D"], values: Float[Tensor, "M K"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Loss (a scalar), mean error of a coordinate in hundredths, and of the logarithms of numbers.

        Args:
            states: Decoder states of the words.
            values: x, y and log2(1 + n) of each referent; NaN if unknown.
        """
        predicted = self.read(self.norm(states)).unflatten(-1, (-1, 3)).flatten(0, 1)
        values = values.unflatten(-1, (-1, 3)).flatten(0, 1)
        placed, counted = ~values[:, 0].isnan(), ~values[:, 2].isnan()
        place, true = predicted[placed, :2], values[placed, :2]
        number, true_number = predicted[counted, 2], values[counted, 2]
        loss = 8 * functional.smooth_l1_loss(place, true, beta=0.05)
        loss = loss + functional.smooth_l1_loss(number, true_number, beta=0.2)
        return loss, {
            "place_error": 100 * (place - true).norm(dim=-1).mean().item(),
            "number_error": (number - true_number).abs().mean().item(),
        }
