"""Images, truths and packed questions to pre-train the reference checkpoints on.

Scenes are drawn on the canvas that the product draws on and resized as the processors resize, once, into a pool on
disk. Questions are drawn anew whenever an image is used, from its scene; half of the uses are mirrored.

Packing: one image with all its questions is one sequence. A question and its answer attend to the image and to
themselves only, and their positions restart after the image, so that each is answered exactly as if it stood alone,
while the image is encoded once.

Legend: ``B`` images, ``S`` sequence length, ``P`` patches.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8, UInt8
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from orchestrator.config import ScenesConfig
from orchestrator.data.questions import make_questions
from orchestrator.data.render import render
from orchestrator.data.scenes import COLOURS, SHAPES, Scene, make_scene
from orchestrator.reference.build import (
    ASSISTANT,
    BOS,
    EOS,
    IMAGE,
    IMAGE_SIZE,
    N_PATCHES,
    PAD,
    PATCH_SIZE,
    PIXELS,
    USER,
)
from orchestrator.reference.dense_loss import dense_targets

MIX: tuple[tuple[float, dict[str, Any]], ...] = (
    (0.45, {"n_objects": (1, 5), "n_objects_spacing": "uniform", "size": (0.14, 0.34)}),
    (0.30, {"n_objects": (1, 5), "n_objects_spacing": "uniform", "size": (0.08, 0.30)}),
    (0.25, {"n_objects": (6, 200), "n_objects_spacing": "log", "size": (0.04, 0.25)}),
)
"""Shares of the pool and their scenes. The first two are low-tier and get questions; crowded scenes teach the encoder
alone, by the dense loss."""

FAMILIES = ("existence", "existence", "existence", "colour", "colour", "shape", "shape", "count", "caption")
"""Families asked of a low-tier scene, as often as they stand here, as far as the scene allows."""

CAPTION_WEIGHT = 0.5
"""Weight of a token of a caption against one of a short answer: captions have up to 14 tokens."""

_SHAPE = {name: i for i, name in enumerate(SHAPES)}
_COLOUR = {name: i for i, name in enumerate(COLOURS)}
_MEAN = np.array(PIXELS["image_mean"], dtype=np.float32)
_STD = np.array(PIXELS["image_std"], dtype=np.float32)


def resize(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "112 112 3"]:
    """Resize an image exactly as both processors do."""
    return np.asarray(Image.fromarray(image).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling(PIXELS["resample"])))


def normalise(pixels: UInt8[np.ndarray, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    """Normalise pixels as both processors do, as float32, channels first."""
    return torch.from_numpy(((pixels.astype(np.float32) / 255 - _MEAN) / _STD).transpose(0, 3, 1, 2).copy())


class Pool:
    """A fixed set of training images on disk, with their scenes. ``low`` and ``crowded`` list the two kinds."""

    def __init__(self, folder: Path, n: int, seed: int) -> None:
        """Open the pool, drawing it first where it is not there yet (about 2 ms an image)."""
        rng = np.random.default_rng(seed)
        kinds = rng.choice(len(MIX), size=n, p=[share for share, _ in MIX])
        configs = [ScenesConfig(seed=seed, **options) for _, options in MIX]
        self.scenes: list[Scene] = [make_scene(configs[kind], i) for i, kind in enumerate(kinds)]
        self.low, self.crowded = np.flatnonzero(kinds < 2), np.flatnonzero(kinds == 2)
        path = folder / f"pool-{seed}-{n}.npy"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            images = np.lib.format.open_memmap(partial, "w+", np.uint8, (n, IMAGE_SIZE, IMAGE_SIZE, 3))
            for i, scene in enumerate(self.scenes):
                images[i] = resize(render(scene))
            images.flush()
            partial.rename(path)
        self.images = np.load(path, mmap_mode="r")


def mirror(scene: Scene) -> Scene:
    """The scene as seen in a mirror: left is right."""
    return replace(scene, objects=tuple(o._replace(x=scene.width - o.x, angle=-o.angle) for o in scene.objects))


def truth(scene: Scene) -> tuple[Int8[np.ndarray, "P 5"], Float[np.ndarray, "P 3"]]:
    """Dense targets of a scene on the patch grid; see `dense_targets`."""
    x, y, size = (np.array([getattr(o, name) for o in scene.objects]) for name in ("x", "y", "size"))
    return dense_targets(
        x / scene.width,
        y / scene.height,
        size / scene.width,
        np.array([_SHAPE[o.shape] for o in scene.objects]),
        np.array([_COLOUR[o.colour] for o in scene.objects]),
        IMAGE_SIZE // PATCH_SIZE,
    )


def ask(scene: Scene, seed: int) -> list[tuple[str, str, float]]:
    """Draw low-tier questions about a low-tier scene: (question, answer, weight of an answer token)."""
    n = len(scene.objects)
    families = [*FAMILIES, *["point", "point"] * (n == 1)]
    return [
        (q.text, q.answer, CAPTION_WEIGHT if q.family == "caption" else 1.0)
        for q in make_questions(scene, families, len(families), seed)
    ]


def pack(
    asked: Sequence[Sequence[tuple[str, str, float]]], tokenizer: PreTrainedTokenizerFast, *, cross: bool
) -> dict[str, Tensor]:
    """Pack the questions about each image into one sequence an image.

    Returns:
        ``input_ids`` int64 (B, S); ``position_ids`` int64 (B, S); ``attention_mask`` bool (B, 1, S, S), True where a
        token (row) may look; ``labels`` int64 (B, S), the *next* token where it belongs to an answer, else -100;
        ``weights`` float32 (B, S), the weight of each label.
    """
    prefix = [BOS, USER, *[IMAGE] * (1 if cross else N_PATCHES)]
    flat = [text for questions in asked for question, answer, _ in questions for text in (question, answer)]
    encoded = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    rows: list[tuple[list[Any], ...]] = []
    for questions in asked:
        ids, positions, part = list(prefix), list(range(len(prefix))), [0] * len(prefix)
        labels, weights = [-100] * len(prefix), [0.0] * len(prefix)
        for number, (_, _, weight) in enumerate(questions, start=1):
            question, answer = [*next(encoded), ASSISTANT], [*next(encoded), EOS]
            length = len(question) + len(answer)
            ids += question + answer
            labels += [-100] * (len(question) - 1) + answer + [-100]
            weights += [0.0] * (len(question) - 1) + [weight] * (len(answer) - 1) + [0.3, 0.0]
            positions += range(len(prefix), len(prefix) + length)
            part += [number] * length
        rows.append((ids, positions, labels, weights, part))
    longest = -(-max(len(row[0]) for row in rows) // 8) * 8
    fill: tuple[float, ...] = (PAD, 0, -100, 0.0, -1)
    table = [torch.tensor([row[k] + [fill[k]] * (longest - len(row[k])) for row in rows]) for k in range(5)]
    parts = table[4]
    same = (parts[:, None, :] == parts[:, :, None]) | (parts[:, None, :] == 0)
    mask = same & torch.ones(longest, longest, dtype=torch.bool).tril()
    return {
        "input_ids": table[0],
        "position_ids": table[1],
        "attention_mask": mask[:, None],
        "labels": table[2],
        "weights": table[3],
    }


class Batches(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Batch number i of a run, made from (seed, i) alone, so that a resumed run sees what an undisturbed one would."""

    def __init__(
        self,
        pool: Pool,
        tokenizer: PreTrainedTokenizerFast | None,
        n_low: int,
        n_crowded: int,
        *,
        seed: int,
        cross: bool = False,
        length: int = 1_000_000,
    ) -> None:
        """Batches of ``n_low`` images with questions, then ``n_crowded`` without; no questions without a tokenizer."""
        self.pool, self.tokenizer, self.cross = pool, tokenizer, cross
        self.n_low, self.n_crowded, self.seed, self.length = n_low, n_crowded, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, i])
        chosen = np.concatenate([rng.choice(self.pool.low, self.n_low), rng.choice(self.pool.crowded, self.n_crowded)])
        mirrored = rng.random(len(chosen)) < 0.5
        images = np.stack(
            [self.pool.images[k][:, ::-1] if m else self.pool.images[k] for k, m in zip(chosen, mirrored, strict=True)]
        )
        scenes = [
            mirror(self.pool.scenes[k]) if m else self.pool.scenes[k] for k, m in zip(chosen, mirrored, strict=True)
        ]
        classes, numbers = zip(*map(truth, scenes), strict=True)
        batch = {
            "pixels": normalise(images),
            "classes": torch.from_numpy(np.stack(classes)).long(),
            "numbers": torch.from_numpy(np.stack(numbers)),
        }
        if self.tokenizer is not None:
            asked = [ask(scene, int(rng.integers(2**31))) for scene in scenes[: self.n_low]]
            batch |= pack(asked, self.tokenizer, cross=self.cross)
        return batch
