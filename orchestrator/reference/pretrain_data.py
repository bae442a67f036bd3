"""Pre-training images of the reference checkpoints with their ground truth, and batches of them.

Scenes are rendered at the package's canvas size and resized as the processors do, once, into a pool on disk. Questions
are drawn from the scene at every use of an image (`packing`); half of the uses are mirrored.

Shapes: ``B`` images, ``P`` patches.
"""

import hashlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int8, UInt8
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from orchestrator.config import ScenesConfig
from orchestrator.data.examples import make_example
from orchestrator.data.questions import LOW_OBJECTS, Question
from orchestrator.data.render import render
from orchestrator.data.scenes import COLOURS, SHAPES, Scene, make_scene
from orchestrator.reference.build import IMAGE_SIZE, PATCH_SIZE, PIXELS
from orchestrator.reference.dense_loss import dense_targets
from orchestrator.reference.packing import ask, pack


class Kind(NamedTuple):
    """One kind of training scene."""

    share: float
    """Share of the pool."""
    use: Literal["plain", "easy", "sparse", "crowded"]
    """``plain`` and ``easy`` scenes have questions of every family, ``sparse`` ones of counting, ``crowded`` ones none:
    they train the encoder only, by the dense loss."""
    options: dict[str, Any]
    """Options of `ScenesConfig`."""
    palette: tuple[int, int] | None = None
    """Range of the number of colours, and of shapes, in one scene; None for all. With few,
    groups of two and three objects are frequent enough to be counted and compared."""
    shrink: float = 1.0
    """Factor of diameters after objects are placed; below 1, objects are well separated."""
    family: str | None = None
    """Scenes are built around a drawn answer to a question of this family, as in fine-tuning; that question comes
    first. In freely drawn scenes most groups are empty or have one object."""


_SIMPLE: dict[str, Any] = {"n_objects": (1, 4), "n_objects_spacing": "uniform", "size": (0.08, 0.22)}
MIX = (
    Kind(0.12, "plain", _SIMPLE),
    Kind(0.04, "plain", {**_SIMPLE, "background": "gradient", "texture": 0.5, "noise": 0.05}),
    Kind(0.04, "plain", {**_SIMPLE, "overlap": True, "size": (0.10, 0.30)}),
    Kind(0.12, "plain", {**_SIMPLE, "size": (0.10, 0.34)}),
    Kind(0.14, "plain", {**_SIMPLE, "n_objects": (3, 4), "size": (0.08, 0.26)}, (2, 3)),
    Kind(0.14, "plain", _SIMPLE, family="comparison"),
    Kind(0.14, "plain", _SIMPLE, family="count_by_attribute"),
    Kind(0.06, "easy", {"n_objects": (2, 3), "n_objects_spacing": "uniform", "size": (0.18, 0.34)}),
    Kind(0.08, "sparse", {"n_objects": (5, 20), "n_objects_spacing": "uniform", "size": (0.13, 0.16)}, (1, 1), 0.45),
    Kind(0.12, "crowded", {"n_objects": (5, 40), "n_objects_spacing": "log", "size": (0.05, 0.22)}),
)
"""Composition of the pool. Crowded scenes have no questions."""

EASY_STEPS = 400
"""Number of steps over which the share of easy scenes decreases from `EASY_SHARE[0]` to `EASY_SHARE[1]`."""
EASY_SHARE = (0.6, 0.25)
SPARSE_SHARE = 0.1
"""Share of sparse scenes among those with questions."""

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


class Drawn(NamedTuple):
    """One training scene."""

    scene: Scene
    question: Question | None
    """The question it was built for; its answer also holds for the mirror image."""


def draw_scene(kind: Kind, seed: int, index: int) -> Drawn:
    """Draw training scene number ``index`` of a kind."""
    options = dict(kind.options)
    if kind.family is not None:
        return Drawn(*make_example(ScenesConfig(**options), kind.family, None, seed, index, room=LOW_OBJECTS[1]))
    if kind.palette is not None:
        rng = np.random.default_rng([seed, index, 1])
        low, high = kind.palette
        for name, values in (("colours", tuple(COLOURS)), ("shapes", SHAPES)):
            chosen = rng.permutation(len(values))[: rng.integers(low, high + 1)]
            options[name] = tuple(values[i] for i in chosen)
    scene = make_scene(ScenesConfig(seed=seed, **options), index)
    return Drawn(replace(scene, objects=tuple(o._replace(size=o.size * kind.shrink) for o in scene.objects)), None)


def _picture(scene: Scene) -> UInt8[np.ndarray, "112 112 3"]:
    return resize(render(scene))


class Pool:
    """A fixed set of training images on disk, with their scenes; ``of`` lists the indices of each use."""

    def __init__(self, folder: Path, n: int, seed: int, *, processes: int = 1) -> None:
        """Open the pool; renders it first if it does not exist (about 2 ms per image and process)."""
        rng = np.random.default_rng(seed)
        kinds = rng.choice(len(MIX), size=n, p=[kind.share for kind in MIX])
        self.scenes = [draw_scene(MIX[kind], seed, i) for i, kind in enumerate(kinds)]
        uses = np.array([kind.use for kind in MIX])[kinds]
        self.of = {use: np.flatnonzero(uses == use) for use in np.unique(uses).tolist()}
        digest = hashlib.sha256(repr((MIX, n, seed)).encode()).hexdigest()[:12]
        path = folder / f"pool-{digest}.npy"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            images = np.lib.format.open_memmap(partial, "w+", np.uint8, (n, IMAGE_SIZE, IMAGE_SIZE, 3))
            with ProcessPoolExecutor(processes) as workers:
                for i, image in enumerate(workers.map(_picture, (d.scene for d in self.scenes), chunksize=200)):
                    images[i] = image
            images.flush()
            partial.rename(path)
        self.images = np.load(path, mmap_mode="r")


def mirror(scene: Scene) -> Scene:
    """The horizontally mirrored scene."""
    return replace(scene, objects=tuple(o._replace(x=scene.width - o.x, angle=-o.angle) for o in scene.objects))


def truth(scene: Scene) -> tuple[Int8[np.ndarray, "P 5"], Float[np.ndarray, "P 5"]]:
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


class Batches(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Batch number i of a run, a function of (seed, i), so that a resumed run has the same batches as an uninterrupted
    one."""

    def __init__(
        self,
        pool: Pool,
        tokenizer: PreTrainedTokenizerFast | None,
        n_asked: int,
        n_crowded: int,
        *,
        seed: int,
        cross: bool = False,
        length: int = 1_000_000,
    ) -> None:
        """Batches of ``n_asked`` images with questions, then ``n_crowded`` without; none without a tokenizer."""
        self.pool, self.tokenizer, self.cross = pool, tokenizer, cross
        self.n_asked, self.n_crowded, self.seed, self.length = n_asked, n_crowded, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, i])
        progress = min(1.0, i / EASY_STEPS)
        easy = EASY_SHARE[0] + progress * (EASY_SHARE[1] - EASY_SHARE[0])
        shares = [1 - easy - SPARSE_SHARE, easy, SPARSE_SHARE]
        uses = [*rng.choice(["plain", "easy", "sparse"], self.n_asked, p=shares), *["crowded"] * self.n_crowded]
        chosen = [int(rng.choice(self.pool.of[use])) for use in uses]
        mirrored = rng.random(len(chosen)) < 0.5
        images, scenes = [], []
        for k, m in zip(chosen, mirrored, strict=True):
            images.append(self.pool.images[k][:, ::-1] if m else self.pool.images[k])
            scenes.append(mirror(self.pool.scenes[k].scene) if m else self.pool.scenes[k].scene)
        classes, numbers = zip(*map(truth, scenes), strict=True)
        batch = {
            "pixels": normalise(np.stack(images)),
            "classes": torch.from_numpy(np.stack(classes)).long(),
            "numbers": torch.from_numpy(np.stack(numbers)),
        }
        if self.tokenizer is not None:
            questions = [
                ask(scene, int(rng.integers(2**31)), first=self.pool.scenes[k].question, sparse=use == "sparse")
                for scene, k, use in zip(scenes[: self.n_asked], chosen, uses, strict=False)
            ]
            batch |= pack(questions, self.tokenizer, cross=self.cross)
        return batch
