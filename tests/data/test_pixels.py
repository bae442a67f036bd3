"""Complexity of a picture from its pixels: independent computations, known extremes and planted order."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
from PIL import Image
from scipy.stats import entropy, spearmanr

from orchestrator.config import FolderConfig, ScenesConfig
from orchestrator.data.pixels import PIXEL_ATTRIBUTES, pixel_attributes
from orchestrator.data.source import make_source
from orchestrator.errors import ConfigError


def test_a_uniform_picture_is_the_simplest() -> None:
    found = pixel_attributes(np.full((200, 300, 3), 90, np.uint8))
    assert set(found) == set(PIXEL_ATTRIBUTES)
    assert (found["edge_density"], found["entropy"], found["n_segments"], found["saliency_spread"]) == (0, 0, 1, 0)
    noise = pixel_attributes(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    assert noise["compressed_size"] > 20 * found["compressed_size"]
    assert noise["entropy"] > 7


def test_entropy_and_colourfulness_equal_their_definitions() -> None:
    rng = np.random.default_rng(1)
    grey = rng.choice([10, 80, 200], p=[0.5, 0.3, 0.2], size=(256, 256)).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, -1)
    found = pixel_attributes(picture)
    assert found["entropy"] == pytest.approx(entropy(np.unique(grey, return_counts=True)[1], base=2), abs=1e-9)
    assert found["colourfulness"] == pytest.approx(0.0)
    red = np.zeros((256, 256, 3), np.uint8)
    red[..., 0] = 255
    assert pixel_attributes(red)["colourfulness"] == pytest.approx(0.3 * np.hypot(255, 127.5))


def test_edges_of_a_step_are_one_pixel_wide() -> None:
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[:, 100:] = 255
    assert pixel_attributes(picture)["edge_density"] == pytest.approx(1 / 256, rel=0.02)
    picture[:, 180:] = 0
    assert pixel_attributes(picture)["edge_density"] == pytest.approx(2 / 256, rel=0.02)


def test_compressed_size_is_that_of_another_encoder() -> None:
    rng = np.random.default_rng(3)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((256, 192))
    buffer = io.BytesIO()
    smooth.save(buffer, format="jpeg", quality=75)
    found = pixel_attributes(np.asarray(smooth))["compressed_size"]
    assert found == pytest.approx(len(buffer.getvalue()) / (256 * 192), rel=0.03)


def test_saliency_spread_equals_its_definition_by_scipy() -> None:
    rng = np.random.default_rng(4)
    for grey in (rng.integers(0, 256, (256, 256)), np.pad(np.full((20, 20), 255), ((30, 206), (200, 36)))):
        # area scaling by four is the mean of blocks of 4 x 4 px
        small = np.rint(grey.reshape(64, 4, 64, 4).mean((1, 3)))
        spectrum = scipy.fft.fft2(small)
        log = np.log(np.abs(spectrum) + 1e-9)
        residual = log - scipy.ndimage.uniform_filter(log, 3, mode="mirror")
        energy = np.abs(scipy.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
        weight = scipy.ndimage.gaussian_filter(energy, 2.5, mode="mirror", truncate=4)
        weight /= weight.sum()
        places = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 64)] * 2, indexing="ij"))
        centre = (weight * places).sum((1, 2), keepdims=True)
        expected = np.sqrt((weight * ((places - centre) ** 2).sum(0)).sum()) / np.sqrt(0.5)
        picture = np.repeat(grey.astype(np.uint8)[..., None], 3, -1)
        assert pixel_attributes(picture)["saliency_spread"] == pytest.approx(expected, rel=1e-3)


def test_segments_are_counted() -> None:
    picture = np.full((256, 256, 3), 255, np.uint8)
    for i in range(5):
        picture[30:80, 10 + 48 * i : 40 + 48 * i] = (40 * i, 0, 200 - 40 * i)
    assert pixel_attributes(picture)["n_segments"] == 6


def test_what_is_added_to_a_scene_raises_each_proxy() -> None:
    source = make_source(ScenesConfig(n_images=40, width=200, height=200, n_objects=(1, 60)))
    samples = [source.load(i) for i in range(40)]
    n = [s.attributes["n_objects"] for s in samples]
    for name in ("edge_density", "compressed_size", "entropy", "n_segments"):
        values = [pixel_attributes(s.image)[name] for s in samples]
        assert spearmanr(n, values).statistic > 0.5, name


def test_any_folder_can_have_them(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (9, 9, 9)).save(tmp_path / "a.png")
    (tmp_path / "attributes.csv").write_text("file,n\na.png,3\n")
    source = make_source(FolderConfig(root=str(tmp_path), pixels=("entropy", "n_segments")))
    assert source.attribute_kinds == {"n": "count", "entropy": "continuous", "n_segments": "count"}
    assert source.load(0).attributes == {"n": 3, "entropy": 0.0, "n_segments": 1}
    plain = make_source(FolderConfig(root=str(tmp_path)))
    assert plain.fingerprint() != source.fingerprint()
    with pytest.raises(ConfigError, match="Did you mean 'entropy'"):
        make_source(FolderConfig(root=str(tmp_path), pixels=("entropie",)))
