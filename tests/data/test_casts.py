"""A cast is a check: values of COCO files and CSV tables convert exactly, or are named with their place."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from orchestrator.config import CocoConfig, FolderConfig
from orchestrator.config.data import MISSING_SPELLINGS
from orchestrator.data.columns import type_column
from orchestrator.data.sample import Source
from orchestrator.data.source import make_source
from orchestrator.data.summary import summarise_attributes
from orchestrator.errors import ConfigError, DataError


def coco(root: Path, annotation: dict[str, Any], image: dict[str, Any] | None = None) -> Source:
    plain = {"id": 3, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    Image.new("RGB", (60, 40)).save(root / "val2017" / "1.png")
    document = {
        "images": [{"id": 1, "file_name": "1.png", "width": 60, "height": 40, **(image or {})}],
        "annotations": [plain | annotation, {"image_id": 1, "category_id": 7, "bbox": [5, 5, 5, 5]}],
        "categories": [{"id": 7, "name": "dog"}],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(document))
    return make_source(CocoConfig(root=str(root), min_objects=0))


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ({"iscrowd": "0"}, r"annotations\[0\] \(image 1\).*iscrowd '0'"),
        ({"iscrowd": 2}, "iscrowd 2"),
        ({"iscrowd": None}, "iscrowd None"),
        ({"image_id": 1.7}, r"annotations\[0\].*image_id 1\.7"),
        ({"image_id": "1"}, "image_id '1'"),
        ({"image_id": True}, "image_id True"),
        ({"category_id": 7.5}, r"category_id 7\.5"),
        ({"category_id": 8}, r"annotations\[0\] \(image 1\).*category 8"),
        ({"bbox": []}, r"annotations\[0\] \(image 1\).*bbox \[\]"),
        ({"bbox": [1, 2, "3", 4]}, r"bbox \[1, 2, '3', 4\]"),
        ({"bbox": [1, 2, True, 4]}, r"bbox \[1, 2, True, 4\]"),
        ({"bbox": {"x": 1}}, "bbox"),
        ({"bbox": [0, 0, 1e308, 1e308]}, "bbox"),
        ({"bbox": [0, 0, 1e9, 4]}, "beyond the picture of 60 x 40"),
        ({"bbox": [-9, 0, 20, 4]}, "beyond the picture"),
        ({"area": 2600}, "area 2600.*beyond the picture"),
        ({"area": "12"}, "area '12'"),
        ({"area": -1}, "negative"),
    ],
)
def test_a_field_of_coco_converts_exactly_or_is_named(tmp_path: Path, annotation: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        coco(tmp_path, annotation)


@pytest.mark.parametrize(
    "image", [{"width": "60"}, {"width": 60.5}, {"height": True}, {"width": 10**30}, {"id": 1.5}, {"file_name": 7}]
)
def test_a_field_of_a_coco_image_converts_exactly_or_is_named(tmp_path: Path, image: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="image"):
        coco(tmp_path, {}, image)


@pytest.mark.parametrize(
    "annotation", [{"image_id": 1.0}, {"iscrowd": False}, {"bbox": [0, 0, 60.4, 40]}, {"area": 2400}]
)
def test_what_converts_exactly_is_taken(tmp_path: Path, annotation: dict[str, Any]) -> None:
    assert coco(tmp_path, annotation).attributes(0)["n_objects"] == 2


def test_every_broken_annotation_of_a_message_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        coco(tmp_path, {"bbox": []}, {"width": 60})
    assert "annotations[0]" in str(caught.value)
    assert "annotations[1]" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@given(field=st.sampled_from(["image_id", "category_id", "bbox", "area", "iscrowd", "id"]), value=JSON)
def test_any_json_in_any_field_is_read_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    with contextlib.suppress(DataError):
        source = coco(tmp_path_factory.mktemp("c"), {field: value})
        assert 1 <= source.attributes(0)["n_objects"] + source.attributes(0)["n_crowds"] <= 2


# ---------------------------------------------------------------- CSV


def table(root: Path, text: str, **options: Any) -> Source:
    (root / "attributes.csv").write_text(text)
    return make_source(FolderConfig(root=str(root), **options))


@pytest.mark.parametrize("spelling", ["", '""', "N/A", "None", "<NA>", "null", " NA ", "#N/A"])
def test_a_missing_number_leaves_its_column_one_of_numbers(tmp_path: Path, spelling: str) -> None:
    source = table(tmp_path, f"file,age,n\na.png,1.5,3\nb.png,{spelling},{spelling}\nc.png,2,4\n")
    assert source.attribute_kinds == {"age": "continuous", "n": "count"}
    assert [source.attributes(i)["age"] for i in range(3)] == [1.5, None, 2.0]
    age = next(one for one in summarise_attributes(source) if one.attribute == "age")
    assert (age.kind, age.n_missing, age.range) == ("continuous", 1, "1.5 to 2")
    assert age.spellings == {spelling.strip().strip('"'): 1}


def test_quoted_fields_and_leading_spaces_are_numbers(tmp_path: Path) -> None:
    source = table(tmp_path, '"file","age","n"\n"a.png","0.5","3"\n"b.png","",""\n"c.png"," 2.5"," 4"\n')
    assert source.attribute_kinds == {"age": "continuous", "n": "count"}
    assert [source.attributes(i)["n"] for i in range(3)] == [3, None, 4]


@pytest.mark.parametrize("value", ['"0,5"', "many", "0x1F", "1 000", "50%", "1e", '"1,234.5"', "007"])
def test_a_word_among_numbers_is_named(tmp_path: Path, value: str) -> None:
    text = f"file,age\na.png,1\nb.png,2\nc.png,{value}\n"
    with pytest.raises(DataError, match=r"attributes\.csv, row 4, column 'age': found .*2 of 3 values are numbers"):
        table(tmp_path, text)
    assert table(tmp_path, text, attributes={"age": "category"}).attributes(2) == {"age": value.strip('"')}


def test_a_column_of_decimal_commas_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2, column 'age': found '0,5'.*decimal point"):
        table(tmp_path, 'file,age\na.png,"0,5"\nb.png,"1,5"\n')


def test_a_declared_kind_holds_or_the_value_is_named(tmp_path: Path) -> None:
    text = "file,age,code\na.png,1,1\nb.png,2.0,02\n"
    kinds = {"age": "count", "code": "category"}
    source = table(tmp_path, text, attributes=kinds)
    assert source.attribute_kinds == {"age": "count", "code": "categorical"}
    assert source.attributes(1) == {"age": 2, "code": "02"}
    with pytest.raises(DataError, match=r"row 3, column 'code': found '02'.*code: number"):
        table(tmp_path, text, attributes={"code": "number"})
    with pytest.raises(DataError, match=r"row 2, column 'age': found '1\.5'; expected a whole number"):
        table(tmp_path, "file,age\na.png,1.5\n", attributes={"age": "count"})
    with pytest.raises(ConfigError, match=r"no attribute 'agee'.*Did you mean 'age'"):
        table(tmp_path, text, attributes={"agee": "count"})
    with pytest.raises(ValueError, match=r"table: my\.csv"):
        FolderConfig.model_validate({"root": "x", "attributes": "my.csv"})


def test_what_is_missing_can_be_set(tmp_path: Path) -> None:
    text = "file,occlusion,n\na.png,None,1\nb.png,partly,-\n"
    source = table(tmp_path, text, missing=("-",))
    assert source.attributes(0) == {"occlusion": "None", "n": 1}
    assert source.attributes(1) == {"occlusion": "partly", "n": None}


@pytest.mark.parametrize("value", ["9007199254740993", "1e999"])
def test_a_number_that_float64_cannot_hold_is_named(tmp_path: Path, value: str) -> None:
    with pytest.raises(DataError, match=f"row 3, column 'x'.*{value}"):
        table(tmp_path, f"file,x\na.png,0.5\nb.png,{value}\n")


@given(
    st.lists(
        st.one_of(st.integers(-(2**63), 2**63 - 1).map(str), st.sampled_from(["", "NA", "None"])),
        min_size=1,
        max_size=9,
    )
)
def test_whole_numbers_of_64_bits_survive_exactly(cells: list[str]) -> None:
    found = type_column(pl.Series("x", cells, dtype=pl.String), "t.csv", "count", MISSING_SPELLINGS)
    assert found.values.to_list() == [None if c in ("", "NA", "None") else int(c) for c in cells]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_floats_survive_exactly(values: list[float]) -> None:
    found = type_column(pl.Series("x", [repr(v) for v in values]), "t.csv", "number", MISSING_SPELLINGS)
    assert found.values.to_list() == values


@given(st.lists(st.text(max_size=5), min_size=1, max_size=9))
def test_every_value_is_kept_missing_or_named(cells: list[str]) -> None:
    with contextlib.suppress(DataError):
        found = type_column(pl.Series("x", cells), "t.csv", None, MISSING_SPELLINGS)
        assert found.values.null_count() == sum(found.missing.values())
        if found.kind != "categorical":
            return
        kept = [pl.Series([c]).str.strip_chars()[0] for c in cells]
        assert [v for v in found.values.to_list() if v is not None] == [
            k for k in kept if k and k not in MISSING_SPELLINGS
        ]
