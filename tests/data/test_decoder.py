"""One decoder for all doors, exact or named; and faults of the machine told from faults of a file."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.capture.loading import load_shard
from orchestrator.config import CocoConfig, FolderConfig, RunConfig
from orchestrator.data.images import decode, safe_name
from orchestrator.data.sample import Source
from orchestrator.data.source import make_source
from orchestrator.errors import DataError, StorageError
from orchestrator.notebook import _pixels
from orchestrator.store import reading
from orchestrator.store.filesystem import Storage
from tests.points import run_capture

WIDTH, HEIGHT = 6, 4
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def coco(
    root: Path, data: bytes, size: tuple[int, int] = (WIDTH, HEIGHT), folder: str = "val2017", **options: Any
) -> Source:
    (root / "annotations").mkdir(parents=True)
    (root / folder).mkdir(parents=True)
    (root / folder / "12:30.png").write_bytes(data)
    document = {
        "images": [{"id": 1, "file_name": "12:30.png", "width": size[0], "height": size[1]}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}],
        "categories": [{"id": 1, "name": "dog"}],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(document))
    return make_source(CocoConfig(root=str(root), **options))


def folder(root: Path, data: bytes) -> Source:
    root.mkdir(parents=True, exist_ok=True)
    (root / "12:30.png").write_bytes(data)
    (root / "attributes.csv").write_text("file,n\n12:30.png,1\n")
    return make_source(FolderConfig(root=str(root)))


def saved(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def palette() -> Image.Image:
    image = Image.new("P", (WIDTH, HEIGHT))
    image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
    image.putdata([i % 2 for i in range(WIDTH * HEIGHT)])
    return image


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Alpha compositing over white in float64, the definition."""
    share = alpha[..., None] / 255.0
    return rgb * share + 255.0 * (1 - share)


ALPHA = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
INDEX = (np.arange(WIDTH * HEIGHT) % 2).reshape(HEIGHT, WIDTH)
COLOURS = np.array([[10, 20, 30], [200, 100, 50]])
DEEP = RNG.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
KEYED = np.where((RGB[0, 0] == RGB).all(-1, keepdims=True), 255, RGB)
EXACT: dict[str, tuple[bytes, np.ndarray]] = {
    "grey": (saved(Image.fromarray(GREY)), np.repeat(GREY[..., None], 3, -1)),
    "bilevel": (saved(Image.fromarray(GREY > 128)), np.repeat(np.where(GREY > 128, 255, 0)[..., None], 3, -1)),
    "rgb with a transparent colour": (saved(Image.fromarray(RGB), transparency=tuple(RGB[0, 0].tolist())), KEYED),
    "palette": (saved(palette()), COLOURS[INDEX]),
    "palette with a transparent colour": (
        saved(palette(), transparency=1),
        np.where(INDEX[..., None], 255, COLOURS[0]),
    ),
    "alpha": (saved(Image.fromarray(np.dstack([RGB, ALPHA]))), over_white(RGB, ALPHA)),
    "grey with alpha": (
        saved(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])),
        over_white(np.repeat(GREY[..., None], 3, -1), ALPHA),
    ),
    "16-bit png": (saved(Image.fromarray(DEEP)), np.repeat((DEEP // 256)[..., None], 3, -1)),
    "16-bit tiff": (saved(Image.fromarray(DEEP), "tiff"), np.repeat((DEEP // 256)[..., None], 3, -1)),
}


@pytest.mark.parametrize("mode", EXACT)
def test_every_door_gives_the_same_and_right_pixels(tmp_path: Path, mode: str) -> None:
    data, expected = EXACT[mode]
    doors = {
        "folder": folder(tmp_path / "folder", data).load(0).image,
        "coco": coco(tmp_path / "coco", data).load(0).image,
        "notebook, file": _pixels("a", tmp_path / "folder" / "12:30.png"),
        "notebook, image": _pixels("a", Image.open(io.BytesIO(data))),
    }
    for door, pixels in doors.items():
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, doors["folder"]), door
    assert np.abs(doors["folder"] - expected).max() <= 1.0


@pytest.mark.parametrize(
    ("array", "kind", "words"),
    [
        (np.full((4, 6), -3, np.int16), "tiff", "signed or 32-bit"),
        (np.full((4, 6), 7, np.int32), "tiff", "signed or 32-bit"),
        (np.full((4, 6), 0.5, np.float32), "tiff", "floating-point"),
    ],
)
def test_pixels_of_unknown_range_are_named_at_every_door(
    tmp_path: Path, array: np.ndarray, kind: str, words: str
) -> None:
    if array.dtype == np.int16:  # Pillow writes no signed 16 bits: an unsigned file whose SampleFormat says signed
        image = Image.fromarray(array.view(np.uint16))
        data = saved(image, kind, tiffinfo={339: 2})
    else:
        data = saved(Image.fromarray(array), kind)
    for load in (lambda: folder(tmp_path / "f", data).load(0), lambda: _pixels("a.tif", Image.open(io.BytesIO(data)))):
        with pytest.raises(DataError, match=words):
            load()


def test_arrays_of_a_notebook_are_pictures() -> None:
    assert np.array_equal(_pixels("a", RGB), RGB)
    assert np.array_equal(_pixels("a", GREY), np.repeat(GREY[..., None], 3, -1))
    assert np.array_equal(_pixels("a", DEEP), np.repeat((DEEP // 256).astype(np.uint8)[..., None], 3, -1))
    with pytest.raises(DataError, match="float64"):
        _pixels("a", RGB / 255)


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), (90 * i, 0, 0)) for i in range(3)]
    data = saved(frames[0], "gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="GIF of 3 frames"):
        folder(tmp_path, data).load(0)


# ---------------------------------------------------------------- orientation, places, names


def turned(orientation: int) -> tuple[bytes, np.ndarray]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.kron(RGB, np.ones((8, 8, 1), np.uint8)))
    return saved(image, "png", exif=exif), np.asarray(image)


def test_a_photograph_is_turned_as_its_annotation_says(tmp_path: Path) -> None:
    data, stored = turned(6)
    upright = np.rot90(stored, -1)
    assert np.array_equal(folder(tmp_path / "f", data).load(0).image, upright)
    assert np.array_equal(_pixels("a", Image.open(io.BytesIO(data))), upright)
    assert np.array_equal(coco(tmp_path / "turned", data, (32, 48)).load(0).image, upright)
    assert np.array_equal(coco(tmp_path / "stored", data, (48, 32)).load(0).image, stored)
    with pytest.raises(DataError, match="48 x 32 px, its annotation says 40 x 32"):
        coco(tmp_path / "neither", data, (40, 32)).load(0)


def test_an_orientation_that_the_size_cannot_decide_is_rejected_unless_set(tmp_path: Path) -> None:
    data, stored = turned(3)
    with pytest.raises(DataError, match=r"orientation 3.*data\.exif"):
        coco(tmp_path / "auto", data, (48, 32)).load(0)
    assert np.array_equal(coco(tmp_path / "turn", data, (48, 32), exif="turn").load(0).image, stored[::-1, ::-1])
    assert np.array_equal(coco(tmp_path / "ignore", data, (48, 32), exif="ignore").load(0).image, stored)


def test_images_in_a_folder_of_images_are_found(tmp_path: Path) -> None:
    source = coco(tmp_path, saved(Image.fromarray(RGB)), folder="images/val2017")
    assert np.array_equal(source.load(0).image, RGB)


@pytest.mark.parametrize("name", ["12:30.png", "a:b/c.png", "file:1.png", "run::2.png"])
def test_a_colon_in_a_name_is_a_letter(name: str) -> None:
    assert safe_name(name, "here") == name


@pytest.mark.parametrize("name", ["C:\\a.png", "c:/a.png", "http://host/a.png", "../a.png", "/a.png"])
def test_drives_uris_and_climbing_names_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="leaves the root"):
        safe_name(name, "here")


# ---------------------------------------------------------------- faults of the machine


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "WAITS_S", (0.0, 0.0, 0.0))


class Failing:
    """Wraps a file system: the first `n` reads of images fail."""

    def __init__(self, fs: Any, n: int, error: Callable[[], Exception]) -> None:
        self.fs, self.left, self.error = fs, n, error

    def cat_file(self, path: str) -> bytes:
        if self.left:
            self.left -= 1
            raise self.error()
        return self.fs.cat_file(path)


TRANSIENT = [
    lambda: OSError(errno.EMFILE, "Too many open files"),
    lambda: OSError(errno.EIO, "Input/output error"),
    lambda: OSError(errno.ESTALE, "Stale file handle"),
    TimeoutError,
    ConnectionResetError,
    MemoryError,
]


@pytest.mark.parametrize("error", TRANSIENT)
@pytest.mark.usefixtures("no_waiting")
def test_a_fault_of_the_machine_is_tried_again_and_never_recorded(
    tmp_path: Path, error: Callable[[], Exception]
) -> None:
    source: Any = folder(tmp_path, saved(Image.fromarray(RGB)))
    plain = source.fs
    source.fs = Failing(plain, 3, error)
    assert load_shard(source, [0])[0].reason is None
    source.fs = Failing(plain, 10**6, error)
    with pytest.raises(StorageError, match=r"12:30\.png: cannot be read now"):
        load_shard(source, [0])


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no"), PermissionError(13, "no"), IsADirectoryError(21, "no")])
def test_a_fault_of_the_file_is_recorded_at_once(tmp_path: Path, error: OSError) -> None:
    source: Any = folder(tmp_path, saved(Image.fromarray(RGB)))
    source.fs = Failing(source.fs, 1, lambda: error)
    assert "12:30.png" in (load_shard(source, [0])[0].reason or "")


@pytest.mark.usefixtures("no_waiting")
def test_a_stage_fails_with_nothing_rejected_and_goes_on_when_the_machine_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for i in range(4):
        (root / f"{i}.png").write_bytes(saved(Image.new("RGB", (40, 30), (i * 50, 0, 0))))
    (root / "attributes.csv").write_text("file,n\n" + "".join(f"{i}.png,{i}\n" for i in range(4)))
    run = RunConfig.model_validate(
        {
            "model": {"name": "reference-joint"},
            "data": {"source": "folder", "root": str(root), "max_rejected_fraction": 1.0},
            "capture": {"layers": [0], "taps": ["decoder"]},
            "how": {"backend": "local", "batch_size": 2, "shard_size": 2, "torch_threads": 1},
        }
    )
    storage = Storage(str(tmp_path / "results"))
    plain = reading.read_bytes

    def failing(fs: Any, path: str, name: str) -> bytes:
        if name == "3.png":
            return reading.retrying(lambda: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many open files")), name)
        return plain(fs, path, name)

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.data.images.read_bytes", failing)
        with pytest.raises(StorageError, match="Too many open files"):
            run_capture(run, storage, quiet=True)
    stage = run_capture(run, storage, quiet=True)
    assert stage.scan("images").collect().height == 4
    assert stage.scan("rejected").collect().height == 0


def test_a_cut_off_file_is_a_broken_image_not_a_fault_of_the_machine() -> None:
    data = saved(Image.fromarray(np.kron(RGB, np.ones((40, 40, 1), np.uint8))), "jpeg")
    with pytest.raises(DataError, match="broken image"):
        decode(data[: len(data) // 2], "a.jpg")
