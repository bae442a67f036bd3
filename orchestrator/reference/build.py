"""Build the two reference checkpoints: model, tokenizer and processor, untrained.

Both are small instances of Hugging Face classes, so that they are loaded, captured, fine-tuned and saved by the code
for hub models:

* ``reference-joint``: `LlavaForConditionalGeneration`, a CLIP vision tower and a Llama decoder. Visual tokens are part
of
  the decoder's sequence.
* ``reference-cross``: `MllamaForConditionalGeneration`. Visual tokens are read by cross-attention layers only.

The two share width, image size, patch size, vocabulary and language layers, so that joint and
cross-attention are compared at equal size.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessorPil,
    MllamaProcessor,
    PreTrainedTokenizerFast,
)

IMAGE_SIZE = 112
"""Side of the square the processors resize an image to, px."""
PATCH_SIZE = 14
"""Side of one patch, px."""
N_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
"""Visual tokens per image."""
WIDTH = 128
"""Width of the vision encoder and of the decoder."""
CROSS_LAYERS = [1, 3, 5]
"""Decoder layers of ``reference-cross`` that read the image."""

PIXELS: dict[str, Any] = {
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""Bicubic resizing and CLIP's normalisation, in both processors."""

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>", "USER:", "ASSISTANT:"]
"""Special tokens; the index in this list is the token id."""
PAD, BOS, EOS, UNK, IMAGE, USER, ASSISTANT = range(len(SPECIAL))

CHAT_TEMPLATE = (
    "{{ PREFIX }}{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% else %} ASSISTANT: {% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""LLaVA-1.5's template, ``USER: <image>\\n{question} ASSISTANT: {answer}<eos>``. ``PREFIX`` is empty (joint: the
tokenizer adds BOS, as LLaVA's does) or BOS (cross: mllama's processor expects it in the text)."""


def make_tokenizer(vocabulary: Iterable[str], *, cross: bool = False) -> PreTrainedTokenizerFast:
    """Make the word-level tokenizer.

    Text is lower-cased and split at spaces and punctuation. Numbers have one token per digit (``37`` is ``3 ##7``):
    twenty tokens encode every number, and decoding restores the text.

    Args:
        vocabulary: Words of the vocabulary. Each is split by the same rule, so ``traffic light`` adds two words.
        cross: Whether the tokenizer is for ``reference-cross``, whose processor adds BOS itself.
    """
    normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    digits = [*"0123456789", *(f"##{digit}" for digit in range(10))]
    words = {
        piece for item in vocabulary for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(item))
    } - set(digits)
    ids = {token: i for i, token in enumerate([*SPECIAL, *digits, *sorted(words | set(".,?()"))])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    if not cross:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>", "user_token": "USER:", "assistant_token": "ASSISTANT:"},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE.replace("{{ PREFIX }}", "{{ bos_token }}" if cross else ""),
    )


def make_processor(vocabulary: Iterable[str], *, cross: bool = False) -> LlavaProcessor | MllamaProcessor:
    """Make the processor: every image is resized to 112 x 112 px (joint), or fitted into one such tile (cross)."""
    tokenizer = make_tokenizer(vocabulary, cross=cross)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    if cross:
        tiles = MllamaImageProcessorPil(size=side, max_image_tiles=1, **PIXELS)
        return MllamaProcessor(tiles, tokenizer, chat_template=tokenizer.chat_template)
    images = CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False, **PIXELS)
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def _text_config(vocab_size: int, n_layers: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": 344,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "rms_norm_eps": 1e-5,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }


def sincos_positions(n_patches: int = N_PATCHES, width: int = WIDTH, base: float = 50.0) -> torch.Tensor:
    """Sinusoidal position embeddings of column and row, (n_patches, width), as in MAE's encoder.

    Patch embeddings of this encoder have a standard deviation of about 5; CLIP's initial position embeddings, of 0.02,
    are negligible for hundreds of steps.
    """
    side = int(n_patches**0.5)
    frequency = base ** (-torch.arange(width // 4) / (width // 4))
    angle = torch.arange(side)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, width / 2)
    return torch.cat([wave.repeat(side, 1), wave.repeat_interleave(side, 0)], dim=1)


def make_joint(vocab_size: int) -> LlavaForConditionalGeneration:
    """Make ``reference-joint`` untrained: 4 vision and 6 decoder layers of width 128.

    The vision tower's last layer feeds the projector (``vision_feature_layer = -1``), so that every layer is
    trained. Its attention biases are zero and fixed in pre-training: mllama's encoder has none, and the weights can be
    copied to it.
    """
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "projection_dim": WIDTH,
            "hidden_act": "gelu",
        },
        text_config={"model_type": "llama", **_text_config(vocab_size, 6), "tie_word_embeddings": True},
        image_token_index=IMAGE,
        image_seq_length=N_PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    for layer in model.model.vision_tower.encoder.layers:
        for projection in (
            layer.self_attn.q_proj,
            layer.self_attn.k_proj,
            layer.self_attn.v_proj,
            layer.self_attn.out_proj,
        ):
            torch.nn.init.zeros_(projection.bias).requires_grad_(False)
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embedding.weight[1:] = sincos_positions()
    _scale_residuals(model.model.language_model.layers, 6)
    return model


def make_cross(vocab_size: int) -> MllamaForConditionalGeneration:
    """Make ``reference-cross`` untrained: 4 vision and 9 decoder layers, 3 of which read the image.

    One tile only: each padding tile would cost as much as the image. The gates of the cross-attention layers start at
    0.5 and their output projections at zero, not vice versa: with gates at zero and random projections, the gates of
    the feed-forward parts closed permanently within a thousand steps.
    """
    config = MllamaConfig(
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 4,
            "num_global_layers": 0,
            "attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "max_num_tiles": 1,
            "intermediate_layers_indices": [1, 3],
            "vision_output_dim": 3 * WIDTH,
            "supported_aspect_ratios": [[1, 1]],
        },
        text_config={**_text_config(vocab_size, 7), "cross_attention_layers": CROSS_LAYERS},
        image_token_index=IMAGE,
    )
    model = MllamaForConditionalGeneration(config)
    layers = model.model.language_model.layers
    with torch.no_grad():
        for index in CROSS_LAYERS:
            layers[index].cross_attn_attn_gate.fill_(0.5)
            layers[index].cross_attn_mlp_gate.fill_(0.5)
            layers[index].cross_attn.o_proj.weight.zero_()
            layers[index].mlp.down_proj.weight.zero_()
    _scale_residuals([layer for i, layer in enumerate(layers) if i not in CROSS_LAYERS], 7)
    return model


def _scale_residuals(layers: Iterable[Any], n_layers: int) -> None:
    """Scale down the output projections of the residual branches, as in GPT-2, for a stable start."""
    for layer in layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            torch.nn.init.normal_(projection.weight, std=0.02 / (2 * n_layers) ** 0.5)


def transplant(joint: LlavaForConditionalGeneration, cross: MllamaForConditionalGeneration) -> None:
    """Initialise ``reference-cross`` from a trained ``reference-joint``: vision encoder, embeddings, language layers.

    Four of the six language layers are copied, in order; the cross-attention layers and the projector are new.
    Both must have the same vocabulary.
    """
    tower: Any = joint.model.vision_tower
    vision = cross.model.vision_model
    with torch.no_grad():
        vision.patch_embedding.weight.copy_(tower.embeddings.patch_embedding.weight)
        vision.class_embedding.copy_(tower.embeddings.class_embedding)
        vision.gated_positional_embedding.embedding.copy_(tower.embeddings.position_embedding.weight)
        vision.layernorm_pre.load_state_dict(tower.pre_layrnorm.state_dict())
        for source, target in zip(tower.encoder.layers, vision.transformer.layers, strict=True):
            for target_name, source_name in (
                ("q_proj", "q_proj"),
                ("k_proj", "k_proj"),
                ("v_proj", "v_proj"),
                ("o_proj", "out_proj"),
            ):
                getattr(target.self_attn, target_name).weight.copy_(getattr(source.self_attn, source_name).weight)
            target.mlp.load_state_dict(source.mlp.state_dict())
            target.input_layernorm.load_state_dict(source.layer_norm1.state_dict())
            target.post_attention_layernorm.load_state_dict(source.layer_norm2.state_dict())
        text, language = joint.model.language_model, cross.model.language_model
        language.embed_tokens.weight[: text.embed_tokens.weight.shape[0]].copy_(text.embed_tokens.weight)
        cross.lm_head.weight.copy_(joint.lm_head.weight)
        language.norm.load_state_dict(text.norm.state_dict())
        self_attention_layers = [layer for i, layer in enumerate(language.layers) if i not in CROSS_LAYERS]
        for source, target in zip(text.layers, self_attention_layers, strict=False):
            target.load_state_dict(source.state_dict())


def save(model: Any, processor: Any, folder: Path) -> None:
    """Write a checkpoint folder: ``config.json``, ``model.safetensors``, tokenizer and processor files."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
