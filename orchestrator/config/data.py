"""Settings of image sources: scenes, COCO, folders of images, question files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from orchestrator.config.section import Count, Int, PositiveFloat, PositiveInt, Section, Share

Background = Literal["white", "gradient", "clutter"]
Hidden = Annotated[float, Field(ge=0, le=0.2)]


class SceneDesign(Section):
    """Factors of designed scenes: the levels of each, fully crossed. A factor with one level is constant."""

    n_objects: tuple[PositiveInt, ...] = (4, 8, 12, 20, 32)
    """Numbers of objects."""
    size_mean: tuple[PositiveFloat, ...] = (0.05, 0.07, 0.09)
    """Mean diameters of objects as fractions of the shorter side."""
    size_spread: tuple[Share, ...] = (0.0, 0.01)
    """Standard deviations of the diameters, in the same unit."""
    n_colours: tuple[PositiveInt, ...] = (1, 2, 4)
    """Numbers of distinct colours."""
    n_shapes: tuple[PositiveInt, ...] = (1, 2, 4)
    """Numbers of distinct shapes."""
    spatial_spread: tuple[Share, ...] = (0.35, 0.5)
    """Spread of the layout, from clustered to uniform: root mean square distance of centres from their mean, divided by
    half the diagonal; uniform random positions have about 0.55."""
    occlusion: tuple[Hidden, ...] = (0.0,)
    """Shares of the objects' area that other objects occlude, reached within 0.02."""
    texture: tuple[Share, ...] = (0.0,)
    """Strengths of a pattern inside objects."""
    background_texture: tuple[Share, ...] = (0.0,)
    """Strengths of a pattern on the background."""
    lighting: tuple[Share, ...] = (0.0,)
    """Strengths of an illumination gradient."""
    background: tuple[Background, ...] = ("white",)
    """Background."""

    @field_validator("*")
    @classmethod
    def _levels(cls, levels: tuple[Any, ...]) -> tuple[Any, ...]:
        if not levels or len(set(levels)) < len(levels):
            raise ValueError(f"expected one or more distinct levels, found {list(levels)}")
        return levels

    @model_validator(mode="after")
    def _several_objects(self) -> SceneDesign:
        if min(self.n_objects) < 2:
            raise ValueError(f"n_objects: one object has no layout; expected 2 or more, found {list(self.n_objects)}")
        return self


_UNDESIGNED = ("n_objects", "n_objects_spacing", "size", "overlap", "texture", "background_texture", "lighting",
               "background")  # fmt: skip


class ScenesConfig(Section):
    """Synthetic scenes: 2-D objects whose every attribute is known exactly."""

    source: Literal["scenes"] = "scenes"
    n_images: PositiveInt = 200
    """Number of scenes."""
    seed: Count = 0
    """A scene is determined by (seed, index) only."""
    design: SceneDesign | None = None
    """Factors drawn independently of each other (`{}`: the default levels). Without a design, scenes are drawn from the
    ranges below, and many attributes correlate with the number of objects."""
    width: Annotated[int, Field(strict=True, ge=16, le=4096)] = 336
    """Canvas width, px."""
    height: Annotated[int, Field(strict=True, ge=16, le=4096)] = 336
    """Canvas height, px."""
    n_objects: tuple[Int, Int] = (1, 200)
    """Smallest and largest number of objects, inclusive."""
    n_objects_spacing: Literal["log", "uniform"] = "log"
    """Distribution of the number of objects between the two."""
    size: tuple[PositiveFloat, PositiveFloat] = (0.04, 0.25)
    """Object diameter as a fraction of the shorter side; crowded scenes shrink it so that all objects fit."""
    shapes: tuple[str, ...] | None = None
    """Subset of shapes; all when absent."""
    colours: tuple[str, ...] | None = None
    """Subset of colours; all when absent."""
    overlap: bool = False
    """Let objects overlap (occlusion)."""
    texture: Share = 0.0
    """Strength of a pattern inside objects."""
    background_texture: Share = 0.0
    """Strength of a pattern on the background."""
    lighting: Share = 0.0
    """Strength of an illumination gradient."""
    background: Background = "white"
    """Background."""
    noise: Share = 0.0
    """Standard deviation of pixel noise, as a fraction of full scale."""
    max_rejected_fraction: Share = 0.01
    """A stage fails if more than this share of images is rejected."""

    @model_validator(mode="after")
    def _ranges(self) -> ScenesConfig:
        for name, (low, high) in (("n_objects", self.n_objects), ("size", self.size)):
            if low > high:
                raise ValueError(f"{name}: the smaller value comes first, found [{low}, {high}]")
        if self.n_objects[0] < 1 or self.n_objects[1] > 1000:
            raise ValueError(f"n_objects: expected 1 to 1000, found {list(self.n_objects)}")
        if self.design is not None:
            for name in _UNDESIGNED:
                if getattr(self, name) != type(self).model_fields[name].default:
                    factor = {"size": "size_mean", "overlap": "occlusion"}.get(name, name.removesuffix("_spacing"))
                    raise ValueError(f"{name}: a design has its own levels; set design.{factor} instead")
        return self


AttributeKind = Literal["count", "number", "category"]
"""Kind of a column: whole numbers, numbers, or anything else."""
MISSING_SPELLINGS = ("NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "None", "NULL", "null")
"""Default spellings of missing values."""


class FilesConfig(Section):
    """Settings common to sources of image files."""

    n_images: PositiveInt | None = None
    """Number of images, drawn by `seed`; all when absent."""
    seed: Count = 0
    """Seed of the draw."""
    pixels: tuple[str, ...] = ()
    """Attributes computed from the pixels (docs/data.md): edge_density, compressed_size, entropy, n_segments,
    colourfulness, saliency_spread."""
    max_rejected_fraction: Share = 0.05
    """A stage fails if more than this share of images is rejected."""


class CocoConfig(FilesConfig):
    """A subset of COCO in its official layout (`annotations/instances_SPLIT.json`, `SPLIT/`)."""

    source: Literal["coco"] = "coco"
    root: str
    """Folder (or fsspec URI) that holds `annotations/` and the image folders."""
    split: str = "val2017"
    """Split name, as in `instances_SPLIT.json`."""
    categories: tuple[str, ...] | None = None
    """Keep images with at least one object of these categories; all when absent."""
    min_objects: Count = 1
    """Keep images with at least this many annotated, non-crowd objects."""
    exif: Literal["auto", "turn", "ignore"] = "auto"
    """EXIF orientation of photographs: applied if the annotated size requires it (`auto`; ambiguous images are
    rejected), always (`turn`), or never (`ignore`)."""


class FolderConfig(FilesConfig):
    """A folder of images with a CSV file of attributes."""

    source: Literal["folder"] = "folder"
    root: str
    """Folder (or fsspec URI) of images."""
    table: str = "attributes.csv"
    """CSV file below `root`: a column `file` and one column per attribute."""
    attributes: dict[str, AttributeKind] = Field(default_factory=dict)
    """Kinds of columns, `{age: number}`; other columns are typed by their values."""
    missing: tuple[str, ...] = MISSING_SPELLINGS
    """Spellings of missing values, besides empty cells; compared exactly, without surrounding spaces."""

    @field_validator("attributes", mode="before")
    @classmethod
    def _kinds(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(f"expected kinds of columns, such as {{age: number}}; the file is `table: {value}`")
        return value


class QuestionsConfig(FilesConfig):
    """Question files: one row per image with its own question (docs/data.md)."""

    source: Literal["questions"] = "questions"
    root: str
    """Folder (or fsspec URI) below which question files and images lie."""
    file: tuple[str, ...] = ()
    """Question files below `root`: JSON lines, JSON, CSV or Parquet; default: the layout's official names."""
    layout: str = "rows"
    """`rows` (fields of docs/data.md), gqa, pope, vqa, textvqa, refcoco, clevr, captions, or a custom layout."""
    images: tuple[str, ...] = ()
    """Path of an image below `root`, with `{image}` for its name in the row and `{number}` for the twelve digits in it
    (COCO 2014's names in COCO 2017's folders). Of several, the first that exists is used; default: the layout's."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Names of the fields in layout `rows`, `{question: prompt, answer: label}`."""
    families: tuple[str, ...] | None = None
    """Keep rows of these families; all when absent."""
    splits: tuple[str, ...] | None = None
    """Keep rows of these splits; all when absent."""
    where: dict[str, str] = Field(default_factory=dict)
    """Keep rows whose attribute has this value, as `{left_right: "true"}` for GQA's left/right relations."""
    scoring: str | None = None
    """Scoring rule of answers (exact, gqa, yes_no, vqa, textvqa, box); default: the layout's rule."""
    extract: str | None = None
    """Extraction of the answer from a generated text: a regular expression with one group (`"answer is ([a-z]+)"`), or
    the name of a function of entry-point group `vtsweep.answers`; default: the whole text."""
    show_choices: Literal["no", "listed", "shuffled"] = "no"
    """Append a row's choices to its question as lettered options, in the file's order or in an order drawn per row by
    `seed`. The model then answers with a letter."""
    attributes: dict[str, AttributeKind] = Field(default_factory=dict)
    """Kinds of free attributes, as for a folder."""
    missing: tuple[str, ...] = MISSING_SPELLINGS
    """Spellings of missing values, as for a folder."""

    @field_validator("file", "images", mode="before")
    @classmethod
    def _one_file(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


DataConfig = Annotated[ScenesConfig | CocoConfig | FolderConfig | QuestionsConfig, Field(discriminator="source")]
