"""Pre-training data of the reference checkpoints: images, ground truth and packed questions.

Scenes are rendered at the package's canvas size and resized as the processors do, once, into a pool on disk. Questions
are drawn from the scene at every use of an image; half of the uses are mirrored.

Packing: one sequence holds an image with all its questions. A question and its answer attend only to the image and to
themselves, and their position ids restart after the image, so that each answer is the same as in a separate sequence,
while the image is encoded once.

Shapes: ``B`` images, ``S`` sequence length, ``P`` patches.
"""

import hashlib
import math
from collections.abc import Sequence
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
from orchestrator.data.questions import LOW_OBJECTS, Question, make_questions
from orchestrator.data.render import render
from orchestrator.data.scenes import COLOURS, SHAPES, Scene, make_scene
from orchestrator.data.templates import templates
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

FAMILIES = (
    *("existence", "existence", "colour", "colour", "shape", "count", "count_by_attribute", "count_by_attribute"),
    *("comparison", "comparison", "comparison", "relation", "relation", "relation", "point", "caption"),
)
"""Question families of a simple scene, with multiplicity, if the scene allows them."""

WEIGHTS = {"caption": 0.4, "point": 0.4, "relation": 1.5, "comparison": 1.5, "colour": 1.5, "existence": 1.5}
"""Weight of an answer token, default 1: captions have up to 11 tokens, boxes 8."""

EASY_STEPS = 400
"""Number of steps over which the share of easy scenes decreases from `EASY_SHARE[0]` to `EASY_SHARE[1]`."""
EASY_SHARE = (0.6, 0.25)
SPARSE_SHARE = 0.1
"""Share of sparse scenes among those with questions."""

_SHAPE = {name: i for i, name in enumerate(SHAPES)}
_COLOUR = {name: i for i, name in enumerate(COLOURS)}
_SINGULAR = {plural: shape for shape, plural in templates()["plurals"].items()}
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


class Mark(NamedTuple):
    """Ground truth about the referent of a word of a question; NaN if there is none."""

    word: int
    """Index of the last word of the name in the question."""
    x: float
    """Position of the only object of that name, as fractions of the canvas."""
    y: float
    log_n: float
    """log2(1 + number of objects of that name)."""


class TrainingQuestion(NamedTuple):
    """One question to train on."""

    text: str
    answer: str
    family: int
    """Index in `LOGGED`."""
    weight: float
    """Weight of an answer token."""
    marks: tuple[Mark, ...]


LOGGED = (
    *("colour", "shape", "existence", "count", "count_sparse", "count_by_attribute", "comparison"),
    *("relation_horizontal", "relation_vertical", "point", "caption"),
)
"""Kinds of questions whose accuracy is logged separately."""


def marks_of(question: Question, scene: Scene) -> tuple[Mark, ...]:
    """Ground truth about each referent of a question: "red circle", "circle", "red objects", "circles"."""
    words = question.text.split()
    names = [question.detail[key] for key in ("object", "group", "other") if key in question.detail]
    if not names and question.family == "shape":
        names = [f"{question.detail['colour']} object"]
    if not names and question.family == "colour":
        names = [question.detail["shape"]]
    if question.family == "count":
        names = ["objects"]
    marks = []
    for name in names:
        parts = name.split()
        at = next(i for i in range(len(words)) if words[i : i + len(parts)] == parts)
        colour = next((p for p in parts if p in _COLOUR), None)
        shape = next((_SINGULAR.get(p, p) for p in parts if _SINGULAR.get(p, p) in _SHAPE), None)
        named = [o for o in scene.objects if colour in (None, o.colour) and shape in (None, o.shape)]
        x = named[0].x / scene.width if len(named) == 1 else math.nan
        y = named[0].y / scene.height if len(named) == 1 else math.nan
        marks.append(Mark(at + len(parts) - 1, x, y, math.log2(1 + len(named))))
    return tuple(marks)


def ask(scene: Scene, seed: int, *, first: Question | None = None, sparse: bool = False) -> list[TrainingQuestion]:
    """Draw questions about a scene, after a given first one: all families for a simple scene, only counting for a
    sparse one."""
    families = ("count", "count_by_attribute") if sparse else FAMILIES
    questions = []
    drawn = make_questions(scene, families, len(families), seed)
    for q in drawn if first is None else [first, *(q for q in drawn if q.text != first.text)]:
        name = f"relation_{q.detail['wording']}" if q.family == "relation" else q.family
        name = "count_sparse" if sparse else name
        marks = marks_of(q, scene)
        questions.append(TrainingQuestion(q.text, q.answer, LOGGED.index(name), WEIGHTS.get(q.family, 1.0), marks))
    return questions


def pack(
    by_image: Sequence[Sequence[TrainingQuestion]], tokenizer: PreTrainedTokenizerFast, *, cross: bool
) -> dict[str, Tensor]:
    """Pack the questions about each image into one sequence per image.

    Returns:
        ``input_ids`` int64 (B, S); ``position_ids`` int64 (B, S); ``attention_mask`` bool (B, 1, S, S), True where a
        token (row) may attend; ``labels`` int64 (B, S), the *next* token if it belongs to an answer, else -100;
        ``weights`` float32 (B, S), the weight of each label; ``question`` int64 (B, S), the number of the question of
        each label in the batch; ``family`` int64 (Q), of each question; ``marks`` int64 (M, 2), row and token of each
        mark, and ``mark_values`` float32 (M, 3); ``asks`` int64 (Q, 2), row and token before each answer, and
        ``ask_values`` float32 (Q, 6), the first two marks of its question, NaN where there are fewer.
    """
    prefix = [BOS, USER, *[IMAGE] * (1 if cross else N_PATCHES)]
    words = sorted({word for row in by_image for q in row for text in q[:2] for word in text.split()})
    ids_of = dict(zip(words, tokenizer(words, add_special_tokens=False)["input_ids"], strict=True))

    def encoded(text: str) -> list[int]:
        """Token ids of a text whose tokens are separated by spaces: ten times as fast as the tokenizer."""
        return [token for word in text.split() for token in ids_of[word]]

    rows: list[tuple[list[Any], ...]] = []
    families: list[int] = []
    marks: list[tuple[int, int]] = []
    values: list[tuple[float, ...]] = []
    asks: list[tuple[int, int]] = []
    pairs: list[list[float]] = []
    for questions in by_image:
        ids, positions, part = list(prefix), list(range(len(prefix))), [0] * len(prefix)
        labels, weights, numbers = [-100] * len(prefix), [0.0] * len(prefix), [0] * len(prefix)
        for number, q in enumerate(questions, start=1):
            question, answer = [*encoded(q.text), ASSISTANT], [*encoded(q.answer), EOS]
            length = len(question) + len(answer)
            marks += [(len(rows), len(ids) + mark.word) for mark in q.marks]
            values += [mark[1:] for mark in q.marks]
            asks.append((len(rows), len(ids) + len(question) - 1))
            pairs.append([*(value for mark in q.marks[:2] for value in mark[1:]), *[math.nan] * 6][:6])
            ids += question + answer
            labels += [-100] * (len(question) - 1) + answer + [-100]
            weights += [0.0] * (len(question) - 1) + [q.weight] * (len(answer) - 1) + [0.3, 0.0]
            numbers += [len(families)] * length
            families.append(q.family)
            positions += range(len(prefix), len(prefix) + length)
            part += [number] * length
        rows.append((ids, positions, labels, weights, part, numbers))
    longest = -(-max(len(row[0]) for row in rows) // 8) * 8
    fill: tuple[float, ...] = (PAD, 0, -100, 0.0, -1, 0)
    table = [
        torch.from_numpy(np.array([row[k] + [fill[k]] * (longest - len(row[k])) for row in rows])) for k in range(6)
    ]
    parts = table[4]
    same = (parts[:, None, :] == parts[:, :, None]) | (parts[:, None, :] == 0)
    mask = same & torch.ones(longest, longest, dtype=torch.bool).tril()
    return {
        "input_ids": table[0],
        "position_ids": table[1],
        "attention_mask": mask[:, None],
        "labels": table[2],
        "weights": table[3].float(),
        "question": table[5],
        "family": torch.tensor(families),
        "marks": torch.tensor(marks, dtype=torch.long).reshape(-1, 2),
        "mark_values": torch.tensor(values, dtype=torch.float32).reshape(-1, 3),
        "asks": torch.tensor(asks, dtype=torch.long).reshape(-1, 2),
        "ask_values": torch.tensor(pairs, dtype=torch.float32).reshape(-1, 6),
    }


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
