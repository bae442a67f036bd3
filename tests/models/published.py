"""Small random checkpoints: of published files, which lie beside the checkout (`shared/real`), and of every family.

The original Molmo needs its publishers' own code: `*_molmo.py` of one of its repositories, in the folder that
`VTSWEEP_MOLMO_CODE` names. Only sizes of layers are changed in a copy of it, the vision encoder's too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from orchestrator.models.adapter import Adapter
from orchestrator.models.random_models import reinitialise
from tests.models.processors import processed_adapter, without_video

REAL = Path(__file__).parents[3] / "shared" / "real"
MOLMO_FILES = ("config_molmo.py", "modeling_molmo.py", "preprocessing_molmo.py", "image_preprocessing_molmo.py")
MOLMO_VISION = {
    "image_emb_dim=1024": "image_emb_dim=32", "image_num_heads=16": "image_num_heads=2", "image_num_layers=23":
    "image_num_layers=10", "image_num_key_value_heads=16": "image_num_key_value_heads=2", "image_head_dim=64":
    "image_head_dim=16", "image_mlp_dim=4096": "image_mlp_dim=64",
}  # fmt: skip
VIDEO_PROCESSOR = {
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "qwen2_5_vl": "Qwen2VLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
    "smolvlm": "SmolVLMVideoProcessor",
    "internvl": "InternVLVideoProcessor",
    "molmo2": "Molmo2VideoProcessor",
}
"""Classes of the video part of processors, which torchvision makes."""


@cache
def tiny() -> Any:
    """The module beside the published files that makes small checkpoints of them."""
    if not (REAL / "tiny.py").is_file():
        pytest.skip("needs published files beside the checkout (shared/real)")
    spec = importlib.util.spec_from_file_location("tiny", REAL / "tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(family: str, folder: Path) -> Path:
    """Write a checkpoint of `llava15`, `granite`, `qwen25vl`, `molmo` or `molmo_o`; skips where files are absent."""
    if family.startswith("molmo"):
        return build_molmo(folder, olmo=family == "molmo_o")
    tiny().build(family, folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    make_teachable(folder, "lm_head.weight", "model.text_model.norm.weight")
    if family == "granite":  # whose pictures are always scaled up to four tiles: one is as good for a test
        file = folder / "preprocessor_config.json"
        settings = json.loads(file.read_text())
        settings["size"] = dict(settings["max_image_size"])
        file.write_text(json.dumps(settings))
    return folder


def make_teachable(folder: Path, head: str, norm: str) -> None:
    """Change an output head drawn at random so that a few steps can teach it an answer.

    A head of 64 inputs and 152,064 rows gives a loss of 8 nats and more whatever the states are, until its rows are as
    long as a trained head's. One that shares the embedding's weights writes the token that it reads, with 23 of 24
    possible nats; the final norm's weights get signs in turn, which makes the two independent of each other.

    Args:
        head: end of the name of the head's weights; a head that is not in the file shares the embedding's.
        norm: name of the final norm's weights.
    """
    file = folder / "model.safetensors"
    state = load_file(file)
    if own := [name for name in state if name.endswith(head)]:
        state[own[0]] *= 0.5 / state[own[0]].std()
    else:
        state[norm][1::2] *= -1
    save_file(state, file, metadata={"format": "pt"})


@torch.no_grad()
def sharpen(adapter: Adapter) -> Adapter:
    """The same for a random model of a family: twice the logits, and signs where head and embedding are one."""
    model: Any = adapter.model
    weight: Any = adapter.final_norm.weight
    neutral = 0.0 if weight.mean().abs() < 0.5 else 1.0  # Gemma's norms multiply by one more than their weight
    signs = torch.ones_like(weight)
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        signs[1::2] = -1
    weight.copy_(2 * signs * (weight + 1 - neutral) - (1 - neutral))
    return adapter


def has_torchvision() -> bool:
    """Whether torchvision is there and fits this build of torch."""
    try:
        import torchvision  # noqa: F401
    except Exception:
        return False
    return True


def stand_in_for_videos(patch: pytest.MonkeyPatch) -> None:
    """Let Qwen2.5-VL's published files load without torchvision, which the video part of its processor needs."""
    import transformers as hf
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from orchestrator.models import extras, loading

    genuine = loading.load_processor

    def load(entry: Any, **where: Any) -> Any:
        if entry.family != "qwen2_5_vl":
            return genuine(entry, **where)
        images, words = (kind.from_pretrained(entry.source) for kind in (Qwen2VLImageProcessorPil, hf.AutoTokenizer))
        template = json.loads((entry.folder / "chat_template.json").read_text())["chat_template"]
        return without_video(hf.Qwen2_5_VLProcessor)(images, words, chat_template=template)

    patch.setattr(loading, "load_processor", load)
    patch.setattr(extras, "FAMILY_EXTRAS", {**extras.FAMILY_EXTRAS, "qwen2_5_vl": ()})


def stand_in_for_resizing(patch: pytest.MonkeyPatch) -> None:
    """Let Molmo2's files load without torchvision, of which its image processor takes two functions of tensors."""
    from transformers import image_processing_backends as backends
    from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor
    from transformers.models.molmo2.processing_molmo2 import Molmo2Processor

    from orchestrator.models import extras, loading

    def resize(image: torch.Tensor, size: tuple[int, int], interpolation: str, antialias: bool) -> torch.Tensor:
        return torch.nn.functional.interpolate(image, size=size, mode=interpolation, antialias=antialias)

    def normalize(image: torch.Tensor, mean: Any, std: Any, inplace: bool = False) -> torch.Tensor:  # noqa: ARG001
        return (image - torch.as_tensor(mean)[:, None, None]) / torch.as_tensor(std)[:, None, None]

    modes = SimpleNamespace(BILINEAR="bilinear", BICUBIC="bicubic", LANCZOS="lanczos")
    functions = {"resize": resize, "normalize": normalize, "grayscale_to_rgb": lambda image: image}
    patch.setattr(backends, "tvF", SimpleNamespace(InterpolationMode=modes, **functions), raising=False)
    patch.setattr(backends, "pil_torch_interpolation_mapping", {Image.Resampling.BILINEAR: modes.BILINEAR})

    def load(entry: Any, **_: Any) -> Any:
        images = Molmo2ImageProcessor.from_pretrained(entry.source)
        return without_video(Molmo2Processor)(images, None, transformers.AutoTokenizer.from_pretrained(entry.source))

    patch.setattr(loading, "load_processor", load)
    patch.setattr(extras, "FAMILY_EXTRAS", {**extras.FAMILY_EXTRAS, "molmo2": ()})


def save_family(family: str, folder: Path, *, videos: bool = True) -> Path:
    """Write a checkpoint of a family's random model with its genuine processor, as its publishers would.

    Args:
        videos: with the video part of the processor, if it has one.
    """
    adapter = processed_adapter(family)
    if videos and getattr(adapter.processor, "video_processor", True) is None:
        if not has_torchvision():
            pytest.skip("the video part of its processor needs torchvision (pip install 'vtsweep[vision]')")
        adapter.processor.video_processor = getattr(transformers, VIDEO_PROCESSOR[family])()
    model: Any = adapter.model
    model.save_pretrained(folder)
    processor = adapter.processor
    for part in (processor,) if videos else (processor.image_processor, processor.tokenizer):
        part.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- Molmo


def molmo_code() -> Path:
    """The folder of the publishers' code."""
    for folder in (os.environ.get("VTSWEEP_MOLMO_CODE"), str(REAL / "molmo")):
        if folder and all((Path(folder) / name).is_file() for name in MOLMO_FILES):
            return Path(folder)
    pytest.skip("needs the publishers' code of Molmo (*_molmo.py; name its folder in VTSWEEP_MOLMO_CODE)")


def build_molmo(folder: Path, *, olmo: bool) -> Path:
    """Molmo-7B-D, or the layout of 7B-O: norms after each block and on queries and keys, no biases."""
    code, module = molmo_code(), tiny()
    folder.mkdir(parents=True)
    for file in (module.HERE / "molmo").iterdir():
        shutil.copy(file, folder / file.name)
    for name in MOLMO_FILES:
        shutil.copy(code / name, folder / name)
    for file in folder.iterdir():
        file.chmod(0o644)
    module.qwen_tokenizer(folder)
    text = (folder / "modeling_molmo.py").read_text()
    for old, new in MOLMO_VISION.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "modeling_molmo.py").write_text(text)
    config = json.loads((folder / "config.json").read_text())
    for key in ("quantization_config", "torch_dtype"):
        config.pop(key)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    config |= {**sizes, "num_key_value_heads": 4 if olmo else 2}
    if olmo:
        config |= {"qkv_bias": False, "attention_layer_norm": True, "norm_after": True, "rope_theta": 500000.0}
    (folder / "config.json").write_text(json.dumps(config))
    write_molmo_weights(folder)
    return folder


def write_molmo_weights(folder: Path) -> None:
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    from orchestrator.models.molmo import apply_shims, without_tensorflow_check

    with without_tensorflow_check():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        model_class: Any = get_class_from_dynamic_module(config.auto_map["AutoModelForCausalLM"], str(folder))
    apply_shims(model_class)
    model = model_class(config, init_params=False)
    reinitialise(model, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embedding" in name or name.endswith("wte.weight"):
                parameter.normal_(std=0.5)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    make_teachable(folder, "transformer.ff_out.weight", "model.transformer.ln_f.weight")


class FloatImage:
    """A float32 image (height, width, channels), as tensorflow's functions hand it on."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def numpy(self) -> np.ndarray:
        return self.values


def stand_in_tensorflow() -> Any:
    """What one form of Molmo's image code takes of tensorflow, made of torch: a cast, an antialiased resize, a clip."""

    def resize(image: FloatImage, size: list[int], **_: object) -> FloatImage:
        tensor = torch.from_numpy(image.values).permute(2, 0, 1)[None]
        made = torch.nn.functional.interpolate(tensor, size=list(map(int, size)), mode="bilinear", antialias=True)
        return FloatImage(made[0].permute(1, 2, 0).numpy())

    cast = SimpleNamespace(
        convert_image_dtype=lambda image, dtype: FloatImage(image.astype(dtype) / np.float32(255)),
        resize=resize,
        ResizeMethod=SimpleNamespace(BILINEAR="bilinear"),
    )
    return SimpleNamespace(
        __spec__=None,
        Tensor=FloatImage,
        Variable=FloatImage,
        image=cast,
        float32=np.float32,
        constant=np.asarray,
        clip_by_value=lambda image, low, high: FloatImage(image.values.clip(low, high)),
    )
