"""What a name stands for, what is refused, and what a plan says without weights."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.config import CaptureConfig, ModelConfig, RunConfig, ScenesConfig
from orchestrator.config.sweep import load_sweep
from orchestrator.errors import ModelError
from orchestrator.models import catalogue, extras, known_config
from orchestrator.models.catalogue import FAMILIES, catalogue_rows, digest_folder, entries, resolve
from orchestrator.models.decoder_config import context_length
from orchestrator.models.examine import examine
from orchestrator.models.geometry import anyres_grid
from orchestrator.models.identity import fingerprint
from orchestrator.models.known_config import read_config
from orchestrator.models.loading import load_adapter, with_hub_errors
from orchestrator.models.planning import footprint, footprint_at
from orchestrator.models.stacks import cross_layers, decoder_stack, vision_stack
from orchestrator.models.visual_tokens import (
    best_resolution,
    canvas_grid,
    closest_grid,
    idefics_tiles,
    qwen_resize,
    visual_load,
)
from orchestrator.store import content_cache

COMMIT = "0" * 40


def named(name: str) -> ModelConfig:
    remote = entries()[name].remote_code
    return ModelConfig(name=name, trust_remote_code=remote, revision=COMMIT if remote else None)


def test_every_entry_is_of_a_supported_family_and_complete():
    for entry in entries().values():
        assert entry.family in FAMILIES
        assert entry.parameters
        assert entry.licence
        assert (entry.folder is None) != (entry.repository is None)
        assert entry.revision is None or entry.pinned
        assert set(entry.extras) <= set(extras.EXTRA_MODULES)
    assert {entry.family for entry in entries().values()} == set(FAMILIES)
    assert [row["name"] for row in catalogue_rows()] == list(entries())


def test_an_unknown_model_gives_the_nearest_names():
    with pytest.raises(ModelError, match="Did you mean 'molmo-7b-"):
        resolve(ModelConfig(name="molmo7b-d"))
    with pytest.raises(ModelError, match="reference-joint"):
        resolve(ModelConfig(name="refrence-joint"))


def test_remote_code_needs_consent_and_a_pinned_revision():
    with pytest.raises(ModelError, match=r"model\.trust_remote_code: true\."):
        resolve(ModelConfig(name="molmo-7b-o"))
    for revision in (None, "main", "abc123"):
        with pytest.raises(ModelError, match="full 40-digit commit"):
            resolve(ModelConfig(name="org/other", trust_remote_code=True, revision=revision))
    with pytest.raises(ModelError, match=r"trust_remote_code needs model\.revision"):
        resolve(ModelConfig(name="molmo-1b", trust_remote_code=True))
    assert resolve(ModelConfig(name="molmo-7b-o", trust_remote_code=True)).pinned
    assert resolve(ModelConfig(name="molmo-7b-o", trust_remote_code=True, revision=COMMIT)).revision == COMMIT


def test_a_folder_has_no_revision(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name in ("reference-joint", str(tmp_path)):
        with pytest.raises(ModelError, match=r"model\.revision 'abc'.*is the folder .*has no revisions"):
            resolve(ModelConfig(name=name, revision="abc"))


def test_a_folder_must_be_a_checkpoint_with_safetensors(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(ModelConfig(name=str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        resolve(ModelConfig(name=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"only pickled weights .pytorch_model\.bin"):
        resolve(ModelConfig(name=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert resolve(ModelConfig(name=str(tmp_path))).family == "llava"


def test_weights_are_digested_once_until_a_file_changes(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    config = ModelConfig(name=str(tmp_path))
    first = fingerprint(config)
    read = []
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *args: read.append(args))
        assert fingerprint(config) == first
    assert not read
    before = weights.stat()
    weights.write_bytes(b"changed")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fingerprint(config) != first


def test_large_weights_are_read_by_the_first_command_only(tmp_path, monkeypatch):
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content_cache, "FRESH_NS", 0)
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in (("config.json", b"{}"), ("a.safetensors", b"first"), ("b.safetensors", b"second")):
        (folder / name).write_bytes(content)
    plain = digest_folder(folder)

    def by_another_command() -> str:
        catalogue._digest_files.cache_clear()
        return digest_folder(folder)

    monkeypatch.setattr(catalogue, "_LARGE", 4)
    assert by_another_command() == plain  # whatever is large
    with monkeypatch.context() as patch:
        patch.setattr(content_cache, "_hash", lambda *_: pytest.fail("read again"))
        assert by_another_command() == plain
    before = (folder / "b.safetensors").stat()
    (folder / "b.safetensors").write_bytes(b"secund")
    os.utime(folder / "b.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert by_another_command() != plain
    (folder / "b.safetensors").write_bytes(b"second")
    assert by_another_command() == plain


def test_fingerprint_is_of_content_and_holds_no_path(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text('{"model_type": "llava"}')
        (tmp_path / folder / "model.safetensors").write_bytes(b"weights")
    first, second = (fingerprint(ModelConfig(name=str(tmp_path / folder))) for folder in ("a", "b"))
    assert first == second
    (tmp_path / "b" / "model.safetensors").write_bytes(b"weightz")
    assert fingerprint(ModelConfig(name=str(tmp_path / "b"))) != first
    hub = fingerprint(ModelConfig(name="llava-1.5-13b"))
    assert hub["repository"] == "llava-hf/llava-1.5-13b-hf"
    assert hub["revision"] == "unpinned"
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        fingerprint(ModelConfig(adapter=str(tmp_path)))
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        fingerprint(ModelConfig(adapter=str(tmp_path)))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="is no safetensors file"):
        fingerprint(ModelConfig(adapter=str(tmp_path)))
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    assert set(fingerprint(ModelConfig(adapter=str(tmp_path)))) - {"pictures_by"} == {
        "content", "adapter", "prompt", "prompt_without_image", "answer", "rendering", "fit",
    }  # fmt: skip


def test_missing_extras_are_named(monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"pip install 'vtsweep\[vision\]'"):
        load_adapter(ModelConfig(name="qwen2.5-vl-7b"), "cpu")


def test_a_gated_model_says_how_to_get_access():
    from huggingface_hub.errors import GatedRepoError

    def refuse():
        error = GatedRepoError.__new__(GatedRepoError)
        Exception.__init__(error, "401")
        raise error

    with pytest.raises(ModelError, match=r"accept its terms at https://huggingface.co/meta-llama.*HF_TOKEN"):
        with_hub_errors(entries()["llama-3.2-11b-vision"], refuse)


@pytest.mark.parametrize(("height", "width", "tokens"), [(336, 336, 288), (480, 640, 704), (768, 1024, 1152)])
def test_molmo_token_counts_are_the_published_ones(height, width, tokens):
    assert footprint_at(named("molmo-7b-d"), height, width).vision_tokens == tokens


def test_paper_models_cost_what_was_measured():
    """Megabytes of raw states and TFLOP of a forward pass, as measured once by hand from the real configs."""
    expected = {
        ("molmo-7b-d", 480, 640): (146, 12.5),
        ("molmo-7b-d", 768, 1024): (240, 21),
        ("molmo-7b-o", 480, 640): (190, 12.5),
        ("molmo-7b-o", 768, 1024): (311, 21),
        ("llama-3.2-11b-vision", 768, 1024): (283, 21),
    }
    for (name, height, width), (megabytes, tflop) in expected.items():
        found = footprint_at(named(name), height, width)
        assert found.raw_bytes_per_image / 1e6 == pytest.approx(megabytes, rel=0.01)
        assert found.tflop_per_image == pytest.approx(tflop, rel=0.03)
    assert footprint_at(named("llama-3.2-11b-vision"), 768, 1024).vision_tokens == 6404


def test_shipped_configs_have_the_published_number_of_parameters():
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForImageTextToText

    for name in ("llava-1.5-7b", "llama-3.2-11b-vision", "smolvlm-256m"):
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(read_config(entries()[name]))
        model.tie_weights()
        counted = sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())
        assert counted / 1e9 == pytest.approx(entries()[name].parameters, rel=0.005), name


@pytest.mark.parametrize("name", [name for name, entry in entries().items() if entry.family != "molmo2"])
def test_every_named_model_can_be_planned_without_weights(name):
    small, large = (footprint_at(named(name), *size) for size in ((336, 336), (768, 1024)))
    assert small.vision_tokens > 0
    # More pixels never cost fewer tokens, but for families that scale every image to the same longest edge.
    if entries()[name].family not in ("idefics3", "smolvlm"):
        assert small.vision_tokens <= large.vision_tokens
    assert small.memory_gb > 2 * entries()[name].parameters
    assert small.bytes_per_image < small.raw_bytes_per_image


def test_operations_that_a_sweep_file_states_are_the_plan_s():
    stated = {}
    for file in sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml")):
        for number in re.findall(r"([\d.]+) TFLOP an image", file.read_text()):
            stated[file.name] = float(number)
            for point in load_sweep(file).points:
                assert footprint(point.run).tflop_per_image == pytest.approx(stated[file.name], rel=0.01)
    assert stated == {"paper_molmo.yaml": 5.3}


def test_plan_follows_the_capture_settings():
    run = RunConfig(model=named("molmo-7b-d"), data=ScenesConfig(width=640, height=480))
    every = footprint(run)
    assert every.vision_tokens == 704
    fewer = footprint(run.model_copy(update={"capture": CaptureConfig(layers=(0, 14), keep_features=False)}))
    assert fewer.bytes_per_image < every.bytes_per_image / 100


def test_best_resolution_is_the_library_s():
    from transformers.image_processing_utils import select_best_resolution

    pinpoints = read_config(entries()["llava-onevision-7b"]).image_grid_pinpoints
    for height in (50, 336, 480, 700, 1500):
        for width in (60, 336, 640, 1024, 2000):
            expected = tuple(select_best_resolution((height, width), pinpoints))
            assert best_resolution(height, width, pinpoints) == expected


def test_anyres_tokens_are_the_library_s():
    """LLaVA-NeXT's own processor counts the placeholders of a prompt the same way."""
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

    config = read_config(entries()["llava-1.6-mistral-7b"])
    for height, width in ((336, 336), (480, 640), (1000, 300), (333, 1200)):
        best = best_resolution(height, width, config.image_grid_pinpoints)
        counted = LlavaNextProcessor._get_unpadded_features(None, height, width, 24, 24, best[0] // 336, best[1] // 336)
        assert len(anyres_grid(config, height, width)) == 24 * 24 + sum(counted)


def test_qwen_sizes_are_the_library_s():
    qwen = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    for height, width in ((336, 336), (480, 640), (30, 40), (5000, 4000), (100, 1900)):
        expected = qwen.smart_resize(height, width, 28, 56 * 56, 12_845_056)
        assert qwen_resize(height, width, 28, 56 * 56, 12_845_056) == tuple(expected)


def test_tilings_are_the_library_s():
    mllama = pytest.importorskip("transformers.models.mllama.image_processing_pil_mllama")
    got = pytest.importorskip("transformers.models.got_ocr2.image_processing_pil_got_ocr2")
    idefics = pytest.importorskip("transformers.models.idefics3.image_processing_pil_idefics3")
    images = idefics.Idefics3ImageProcessorPil(size={"longest_edge": 4 * 364}, max_image_size={"longest_edge": 364})

    ratios = read_config(entries()["llama-3.2-11b-vision"]).vision_config.supported_aspect_ratios
    for height, width in ((336, 336), (480, 640), (768, 1024), (200, 2000), (1500, 700)):
        expected = mllama.get_optimal_tiled_canvas(height, width, 4, 560)
        assert tuple(side * 560 for side in canvas_grid(height, width, 560, ratios, 4)) == tuple(expected)
        cols, rows = got.get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
        assert closest_grid(height, width, 448, 12) == (rows, cols)
        assert idefics_tiles(364, 4, height, width) == images.get_number_of_image_patches(height, width, {})[0]


@pytest.mark.parametrize("size", [(112, 112), (112, 300), (60, 60)])
def test_molmo_s_pictures_of_no_more_than_its_margin_have_tokens(size):
    """112 px are the margin of overlapping crops: nothing is left beside it to be divided by."""
    assert visual_load(read_config(entries()["molmo-7b-d"]), *size).tokens >= 288


def test_molmo2_tokens_are_its_processor_s():
    pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    from transformers import Molmo2Config
    from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor

    images = Molmo2ImageProcessor()
    for height, width in ((336, 336), (480, 640), (768, 1024), (200, 2000), (30, 40), (3000, 2000)):
        grid, _ = images.get_image_grid_and_crops(height, width, {})
        expected = int(grid[0] * grid[1] + grid[2] * grid[3])
        assert visual_load(Molmo2Config(), height, width).tokens == expected


def test_a_family_without_a_rule_says_so():
    class Config:
        model_type = "other"

        class vision_config:  # noqa: N801
            image_size, patch_size = 16, 4

    with pytest.raises(ModelError, match="No rule for the vision tokens of family 'other'"):
        visual_load(Config, 100, 100)


def test_doctor_finds_a_reference_model_sound():
    findings = examine(ModelConfig(name="reference-joint"))
    assert [finding.check for finding in findings][-1] == "one image"
    assert {finding.status for finding in findings} == {"ok"}
    assert "64 vision tokens" in findings[-1].found


def test_doctor_stops_at_what_is_missing(monkeypatch):
    assert [finding.status for finding in examine(ModelConfig(name="nothing-like-it"))] == ["fail"]
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda _: None)
    findings = examine(ModelConfig(name="qwen2.5-vl-7b"))
    assert findings[-1].check == "extras"
    assert "pip install" in findings[-1].fix


def test_catalogue_needs_no_torch():
    import subprocess

    code = "import sys, orchestrator.models.catalogue as c; c.entries(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["reference-joint", "reference-cross"])
def test_a_shipped_config_read_without_transformers_says_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunConfig.model_validate({"model": {"name": name}, "data": {"source": "scenes", "n_images": 4}})
    entry = resolve(run.model)
    found = []
    for shipped in (True, False):
        monkeypatch.setattr(known_config, "is_shipped", lambda _, shipped=shipped: shipped)
        config = known_config.read_config(entry)
        found.append((footprint(run), decoder_stack(config), vision_stack(config), cross_layers(config)))
        found[-1] += (context_length(config), config.model_type)
    assert found[0] == found[1]
