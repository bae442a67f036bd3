"""Questions about COCO images, as far as boxes allow them: existence, comparison and counting of categories, relations
of two unique objects, and pointing.

The world is not balanced (people are common, skis lie below them), so questions are drawn over a whole subset: for each
text, every possible answer is equally likely, and relations are asked left to right only (as GQA's in the paper).
Pointing is the exception: photographs have their subject in the middle, so its chance level has to be measured.
Categories under a crowd annotation are neither counted, compared nor referred to in that image. The tier of a question
is that of its photograph, by the number of annotated objects; one with a crowd annotation is of the high tier, as COCO
marks groups of more than ten (Lin et al. 2014).
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property

import numpy as np

from orchestrator.data.builders import BUILDERS, CLEAR, percent, pick
from orchestrator.data.coco import CocoObject, CocoSource
from orchestrator.data.questions import HIGH_OBJECTS, LOW_OBJECTS, Question, tier_of
from orchestrator.data.templates import check_families, choices_of, word
from orchestrator.errors import ConfigError, DataError

COCO_FAMILIES = ("existence", "count_by_attribute", "comparison", "relation", "point")
"""Families that boxes can answer. The number of all objects is not among them: COCO does not annotate every object."""
MAX_COUNT = 5
"""Largest number asked for; answers are uniform from 1 to it, or to the largest number that both tiers offer."""
LEAST_SHARE = 0.01
"""A box referred to covers at least this share of the image, so that the object can be seen."""

Asked = tuple[int, str, dict[str, str], str]
"""Image index, group of wordings, words for its placeholders, answer."""


class _BothOrders:
    """Images by an ordered pair of categories; draws only pairs that occur in both orders, each as often."""

    def __init__(self) -> None:
        self.images: dict[tuple[int, int], list[int]] = defaultdict(list)

    def add(self, image: int, pairs: list[tuple[int, int]]) -> None:
        for pair in pairs:
            self.images[pair].append(image)

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        return sorted((a, b) for a, b in self.images if a < b and (b, a) in self.images)

    def draw(self, rng: np.random.Generator) -> tuple[int, tuple[int, int]] | None:
        """Draw a pair, then an order, then an image that has it; None where no pair occurs in both orders."""
        pair = pick(rng, self.pairs)
        if pair is None:
            return None
        order = pair if rng.random() < 0.5 else (pair[1], pair[0])
        image = pick(rng, self.images[order])
        assert image is not None
        return image, order


class CocoQuestions:
    """Draws balanced questions about the images of a COCO source, or those of them whose id is `among` the chosen.

    Args:
        low: inclusive numbers of objects of the low tier.
        high: those of the high tier.
    """

    def __init__(
        self,
        source: CocoSource,
        among: Callable[[str], bool] | None = None,
        low: tuple[int, int] = LOW_OBJECTS,
        high: tuple[int, int] = HIGH_OBJECTS,
    ) -> None:
        self.source, self.names = source, source.categories
        image = np.repeat(np.arange(len(source)), np.diff(source.starts))
        plain = ~source.crowd
        self.counts = np.zeros((len(source), len(self.names)), dtype=np.int32)
        np.add.at(self.counts, (image[plain], source.category[plain]), 1)
        self.crowded = np.zeros(self.counts.shape, dtype=bool)
        self.crowded[image[source.crowd], source.category[source.crowd]] = True
        self.n_objects = self.counts.sum(1)
        numbers: list[int] = self.n_objects.tolist()
        self.tiers = np.array([tier_of(n, low, high) or "" for n in numbers], dtype="U4")
        self.tiers[self.crowded.any(1)] = "high"
        self._chosen = np.array([among is None or among(image_id) for image_id in source.ids])
        self.counts[~self._chosen] = 0
        self._more = {tier: _BothOrders() for tier in ("low", "high")}
        self._left = {tier: _BothOrders() for tier in ("low", "high")}
        self._pointable = np.zeros(len(source), dtype=bool)
        for index in np.flatnonzero(self._chosen).tolist():
            unique = self._unique(index)
            self._pointable[index] = bool(unique)
            if tier := str(self.tiers[index]):
                self._left[tier].add(index, self._left_of(index, unique))
                self._more[tier].add(index, self._more_often(index))

    def make(self, family: str, tier: str, seed: int, index: int) -> tuple[int, Question]:
        """Make question number `index` of a family and tier: the image's index in the source, and the question.

        Depends on the source and the arguments alone. Raises ConfigError for a family or tier that boxes cannot
        answer, DataError where the subset holds too little to balance the answers.
        """
        check_families([family], BUILDERS)
        if family not in COCO_FAMILIES:
            raise ConfigError(f"families: COCO's boxes cannot answer {family!r}; they can answer {list(COCO_FAMILIES)}")
        rng = np.random.default_rng([seed, index, zlib.crc32(f"{family}-{tier}".encode())])
        draw = {
            "existence": self._existence,
            "count_by_attribute": self._count_by_attribute,
            "comparison": self._comparison,
            "relation": self._relation,
            "point": self._point,
        }[family]
        drawn = draw(rng, tier)
        if drawn is None:
            n = int((self._chosen & (self.tiers == tier)).sum())
            raise DataError(
                f"data: {n} of {len(self.source)} images of {self.source.config.split} are of the {tier} tier and may "
                f"be asked about, too few for balanced {tier} {family} questions; choose more images"
            )
        image, group, words, answer = drawn
        template, text = word(family, group, words, rng)
        image_id = self.source.ids[image]
        return image, Question(
            question_id=f"{image_id}/{family}-{tier}-{index}",
            image_id=image_id,
            family=family,
            tier=tier,
            text=text,
            answer=answer,
            choices=choices_of(family, group, (), ()),
            template=template,
            detail={"wording": group, "n_objects": int(self.n_objects[image]), **words},
        )

    @cached_property
    def _presence(self) -> dict[str, tuple[np.ndarray, np.ndarray, list[int]]]:
        """By tier: where each category is (n_images, C), where it is not, and the categories that have both."""
        table = {}
        for tier in ("low", "high"):
            of_tier = ((self.tiers == tier) & self._chosen)[:, None]
            present = np.asfortranarray((self.counts > 0) & of_tier)
            absent = np.asfortranarray((self.counts == 0) & ~self.crowded & of_tier)
            table[tier] = present, absent, np.flatnonzero(present.any(0) & absent.any(0)).tolist()
        return table

    def _existence(self, rng: np.random.Generator, tier: str) -> Asked | None:
        present, absent, categories = self._presence[tier]
        category = pick(rng, categories)
        if category is None:
            return None
        answer = "yes" if rng.random() < 0.5 else "no"
        image = pick(rng, np.flatnonzero((present if answer == "yes" else absent)[:, category]))
        assert image is not None
        return int(image), "pair", {"object": self.names[category]}, answer

    @cached_property
    def _countable(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By tier: counts (n_images, C), crowds and other images 0; up to which number each category offers all."""
        table = {}
        for tier in ("low", "high"):
            of_tier = (self.tiers == tier)[:, None] & ~self.crowded
            counts = np.asfortranarray(np.where(of_tier, self.counts, 0))
            offered = np.stack([(counts == k).any(0) for k in range(1, MAX_COUNT + 1)])
            table[tier] = counts, np.cumprod(offered, axis=0).sum(0)
        return table

    def _count_by_attribute(self, rng: np.random.Generator, tier: str) -> Asked | None:
        counts, reach = self._countable[tier]
        largest = {t: int(numbers.max(initial=0)) for t, (_, numbers) in self._countable.items()}
        largest_count = min((n for n in largest.values() if n >= 2), default=0)
        if largest[tier] < 2:
            return None
        answer = int(rng.integers(1, largest_count + 1))
        category = pick(rng, np.flatnonzero(reach >= largest_count).tolist())
        assert category is not None
        image = pick(rng, np.flatnonzero(counts[:, category] == answer))
        assert image is not None
        return int(image), "group", {"group": f"{self.names[category]} objects"}, str(answer)

    def _comparison(self, rng: np.random.Generator, tier: str) -> Asked | None:
        drawn = self._more[tier].draw(rng)
        if drawn is None:
            return None
        image, (more, fewer) = drawn
        wording = "more" if rng.random() < 0.5 else "fewer"
        answer = "yes" if rng.random() < 0.5 else "no"
        first, second = (more, fewer) if (wording == "more") == (answer == "yes") else (fewer, more)
        words = {"group": f"{self.names[first]} objects", "other": f"{self.names[second]} objects"}
        return image, wording, words, answer

    def _relation(self, rng: np.random.Generator, tier: str) -> Asked | None:
        drawn = self._left[tier].draw(rng)
        if drawn is None:
            return None
        image, (left, right) = drawn
        answer = "left" if rng.random() < 0.5 else "right"
        first, second = (left, right) if answer == "left" else (right, left)
        return image, "horizontal", {"object": self.names[first], "other": self.names[second]}, answer

    @cached_property
    def _pointable_images(self) -> dict[str, list[int]]:
        return {tier: np.flatnonzero(self._pointable & (self.tiers == tier)).tolist() for tier in ("low", "high")}

    def _point(self, rng: np.random.Generator, tier: str) -> Asked | None:
        image = pick(rng, self._pointable_images[tier])
        if image is None:
            return None
        target = pick(rng, list(self._unique(image).values()))
        assert target is not None
        width, height = self.source.sizes[image].tolist()
        x0, y0, x1, y1 = target.x, target.y, target.x + target.width, target.y + target.height
        if rng.random() < 0.75:
            group, corners = "point", [((x0 + x1) / 2, (y0 + y1) / 2)]
        else:
            group, corners = "box", [(x0, y0), (x1, y1)]
        answer = " ".join(f"{percent(x, width)} {percent(y, height)}" for x, y in corners)
        return image, group, {"object": target.category}, answer

    def _more_often(self, image: int) -> list[tuple[int, int]]:
        counts = np.where(self.crowded[image], 0, self.counts[image])
        present = np.flatnonzero(counts).tolist()
        return [(a, b) for a in present for b in present if counts[a] > counts[b]]

    def _left_of(self, image: int, unique: dict[int, CocoObject]) -> list[tuple[int, int]]:
        centres = {c: item.x + item.width / 2 for c, item in unique.items()}
        limit = CLEAR * float(self.source.sizes[image, 0])
        return [(a, b) for a in centres for b in centres if centres[b] - centres[a] >= limit]

    def _unique(self, image: int) -> dict[int, CocoObject]:
        """Objects that are the only one of their category, large enough to see, by category number."""
        width, height = self.source.sizes[image].tolist()
        alone = (self.counts[image] == 1) & ~self.crowded[image]
        rows = range(int(self.source.starts[image]), int(self.source.starts[image + 1]))
        objects = self.source.objects(image)
        return {
            int(self.source.category[row]): item
            for row, item in zip(rows, objects, strict=True)
            if alone[self.source.category[row]] and item.width * item.height >= LEAST_SHARE * width * height
        }
