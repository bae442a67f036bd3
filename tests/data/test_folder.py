"""A folder of images with a CSV of attributes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.config import FolderConfig
from orchestrator.data.folder import FolderSource
from orchestrator.data.source import make_source
from orchestrator.errors import DataError

TABLE = "file,id,n_cars,brightness,weather,night\na.png,one,3,0.5,rain,true\nb/c.png,two,0,0.25,,false\n"


def write(root: Path, table: str = TABLE) -> Path:
    (root / "b").mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b/c.png"):
        Image.new("RGBA", (8, 6), (255, 0, 0, 0)).save(root / name)
    (root / "attributes.csv").write_text(table)
    return root


def open_folder(root: Path, **options: object) -> FolderSource:
    return FolderSource(FolderConfig(root=str(root), **options))


def test_columns_are_attributes_typed_by_their_content(tmp_path: Path) -> None:
    source = make_source(FolderConfig(root=str(write(tmp_path))))
    assert source.attribute_kinds == {
        "n_cars": "count",
        "brightness": "continuous",
        "weather": "categorical",
        "night": "categorical",
    }
    first, second = source.load(0), source.load(1)
    assert first.image_id == "one"
    assert first.attributes == {"n_cars": 3, "brightness": 0.5, "weather": "rain", "night": "true"}
    assert second.attributes["weather"] is None
    assert first.image.shape == (6, 8, 3)
    assert (first.image == 255).all()  # transparent red lies over white


@pytest.mark.parametrize("missing", ["", "NA", "NaN", "nan"])
def test_a_missing_number_is_null_and_its_column_stays_a_column_of_numbers(tmp_path: Path, missing: str) -> None:
    source = open_folder(write(tmp_path, f"file,x,n\na.png,1.5,3\nb/c.png,{missing},{missing}\n"))
    assert source.attribute_kinds == {"x": "continuous", "n": "count"}
    assert source.load(1).attributes == {"x": None, "n": None}


def test_without_ids_the_path_is_the_id(tmp_path: Path) -> None:
    source = open_folder(write(tmp_path, "file,n\nb/c.png,1\na.png,2\n"))
    assert source.ids == ["b/c.png", "a.png"]
    assert open_folder(tmp_path, n_images=1).ids[0] in source.ids
    assert str(tmp_path) not in str(source.fingerprint())


def test_a_photo_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    write(tmp_path, "file,n\nturned.jpg,1\n")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((6, 8, 3), dtype=np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_folder(tmp_path).load(0).image.shape == (8, 6, 3)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("fle,n\na.png,1\n", "Did you mean 'file'|Known: fle|column `file`"),
        ("file,n\n", "lists no images"),
        ("file\na.png\n", "at least one attribute"),
        ("file,n\na.png,1\na.png,2\n", "more than once"),
        ("file,id,n\na.png,x,1\nb/c.png,x,2\n", "id 'x' occurs"),
        ("file,n\n../a.png,1\n", "row 2.*leaves the root"),
        ("file,n\n,1\n", "row 2.*empty"),
        ("", "not a CSV"),
        ("index,file,n\n7,a.png,1\n", "'index'.*another name"),
        ("file,width\na.png,1\n", "'width'.*another name"),
        (",file,n\n0,a.png,1\n", "a name without spaces"),
        ("file, n\na.png, 1\n", "a name without spaces"),
        ("file,n\na.png,99999999999999999999\n", "64 bits"),
        ("file,n\na.png,1.5\nb/c.png,inf\n", "infinite"),
        ("file,n,m,n\na.png,1,2,3\n", "columns 2 and 4 have one name, 'n'"),
    ],
)
def test_malformed_tables_are_named(tmp_path: Path, table: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_folder(write(tmp_path, table))


def test_a_table_of_another_encoding_is_named_with_the_line(tmp_path: Path) -> None:
    """Read as UTF-8 its words would be others: `größe` of a table in Latin-1."""
    root = write(tmp_path)
    (root / "attributes.csv").write_bytes("file,size\na.png,1\nb/c.png,größe\n".encode("latin-1"))
    with pytest.raises(DataError, match="line 3: byte 0xf6 is no UTF-8"):
        open_folder(root)


def test_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"Did you mean 'attributes.csv'"):
        open_folder(write(tmp_path), table="attribute.csv")
    with pytest.raises(DataError, match="3 asked for"):
        open_folder(tmp_path, n_images=3)
    source = open_folder(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: missing"):
        source.load(0)
