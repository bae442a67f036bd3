"""The genuine processor classes of the families, with a small tokeniser and small images, without a hub.

Processors that also take videos need torchvision for that part alone; here that part stays empty.
"""

from typing import Any

import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, processors
from tokenizers import models as tokenizer_models
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from orchestrator.models.adapter import Adapter
from orchestrator.models.families import make_adapter
from orchestrator.models.random_configs import Size
from orchestrator.models.random_models import FAMILIES as RANDOM
from orchestrator.models.random_models import random_adapter

IMAGE_TOKEN = {
    "qwen2_5_vl": "<|image_pad|>",
    "qwen3_vl": "<|image_pad|>",
    "internvl": "<IMG_CONTEXT>",
    "mllama": "<|image|>",
}
SPECIALS = {
    "<|vision_start|>": 122,
    "<|vision_end|>": 123,
    "<start_of_image>": 122,
    "<end_of_image>": 123,
    "<fake_token_around_image>": 121,
    "<global-img>": 118,
    "<row_1_col_1>": 112,
    "<row_1_col_2>": 113,
    "<row_2_col_1>": 114,
    "<row_2_col_2>": 115,
    "<end_of_utterance>": 117,
    "<|im_start|>": 124,
    "<|im_end|>": 126,
    "<|begin_of_text|>": 127,
    "<video>": 125,
}
NAMED = {
    "gemma3": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image>"},
    "internvl": {
        "start_image_token": "<|vision_start|>",
        "end_image_token": "<|vision_end|>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
}
FAMILIES = tuple(family for family in RANDOM if family != "molmo2")  # whose processor needs torchvision throughout
MOLMO2 = {"<|image|>": 119, "<im_patch>": 120, "<im_col>": 121, "<im_start>": 122, "<im_end>": 123,
          "<low_res_im_start>": 124, "<|video|>": 125, "<frame_start>": 126, "<frame_end>": 127, "<im_low>": 118,
          "<|im_start|>": 116, "<|im_end|>": 117}  # fmt: skip


def make_tokenizer(family: str, *, bos: bool = True) -> Any:
    """Characters, spaces included, so that any text survives; ids fit the random models' vocabulary."""
    image = IMAGE_TOKEN.get(family, "<image>")
    letters = "\n abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:?<>|_-[]/,'"
    vocabulary = {letter: 5 + i for i, letter in enumerate(letters)}
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, **vocabulary, image: 120}
    # Of two names with one id, the family's own.
    unused = {"<start_of_image>", "<end_of_image>"} if family != "gemma3" else {"<|vision_start|>", "<|vision_end|>"}
    words |= {name: token for name, token in SPECIALS.items() if name not in unused}
    if family == "molmo2":
        words = {**{name: token for name, token in words.items() if token < 112}, **MOLMO2}
    core = Tokenizer(tokenizer_models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(name, normalized=False) for name, token in words.items() if len(name) > 1])
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=NAMED.get(family, {}),
    )


def without_video(processor_class: Any) -> Any:
    """A processor class that takes its video part as given, absent too."""
    return type(processor_class.__name__, (processor_class,), {"check_argument_for_proper_class": lambda *_: None})


def make_processor(family: str, config: Any) -> Any:
    vision = config.vision_config
    side = getattr(vision, "image_size", None)
    side = side[0] if isinstance(side, list | tuple) else side
    square = {"height": side, "width": side}
    words = make_tokenizer(family, bos=family not in ("qwen2_5_vl", "qwen3_vl", "internvl", "mllama"))
    if family == "llava":
        images = hf.CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False)
        return hf.LlavaProcessor(
            images, words, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
        )
    if family in ("llava_next", "llava_onevision"):
        kind = "LlavaNext" if family == "llava_next" else "LlavaOnevision"
        make_images = getattr(hf, f"{kind}ImageProcessor")
        size = {"shortest_edge": side} if family == "llava_next" else square
        images = make_images(size=size, crop_size=square, image_grid_pinpoints=config.image_grid_pinpoints)
        if family == "llava_next":
            return hf.LlavaNextProcessor(
                images, words, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
            )
        return without_video(hf.LlavaOnevisionProcessor)(
            images, words, num_image_tokens=4, vision_feature_select_strategy="full"
        )
    if family in ("qwen2_5_vl", "qwen3_vl"):
        images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=4096)
        return without_video(hf.Qwen2_5_VLProcessor if family == "qwen2_5_vl" else hf.Qwen3VLProcessor)(images, words)
    if family in ("idefics3", "smolvlm"):
        make = Idefics3ImageProcessorPil if family == "idefics3" else SmolVLMImageProcessorPil
        images = make(size={"longest_edge": 2 * side}, max_image_size={"longest_edge": side})
        kind = without_video(hf.Idefics3Processor if family == "idefics3" else hf.SmolVLMProcessor)
        video = {"video_processor": None} if family == "smolvlm" else {}
        return kind(images, words, image_seq_len=4, **video)
    if family == "internvl":
        images = GotOcr2ImageProcessorPil(size=square, crop_to_patches=True, min_patches=1, max_patches=6)
        return without_video(hf.InternVLProcessor)(images, words, image_seq_length=config.image_seq_length)
    if family == "molmo2":
        from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor

        images = Molmo2ImageProcessor(size=square, patch_size=4, max_crops=4, overlap_margins=[0, 0])
        return without_video(hf.Molmo2Processor)(images, None, words)
    if family == "paligemma":
        images = hf.SiglipImageProcessor(size=square)
        images.image_seq_length = (side // 4) ** 2
        return hf.PaliGemmaProcessor(images, words)
    if family == "gemma3":
        images = hf.Gemma3ImageProcessor(size=square)
        return hf.Gemma3Processor(images, words, image_seq_length=config.mm_tokens_per_image)
    images = hf.MllamaImageProcessor(size=square, max_image_tiles=vision.max_num_tiles)
    return hf.MllamaProcessor(images, words)


def processed_adapter(family: str, size: Size | None = None) -> Adapter:
    """A random model of a family with a genuine processor."""
    adapter = random_adapter(family, size)
    return make_adapter(adapter.model, make_processor(family, adapter.config))
