"""A small model with the original Molmo's module layout, names and call signatures, written for these tests.

Blocks at `model.transformer.blocks` take `attention_bias`, `position_ids` and `layer_past` and return (x, cache);
image features are added at `image_input_idx`; caches are tuples. Two crops, the low-resolution view first.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from orchestrator.models.batching import Batch
from orchestrator.models.molmo import MolmoAdapter
from orchestrator.models.random_models import reinitialise

PATCH_TOKEN, COLUMN_TOKEN = 120, 121
POOLED = 2
WIDTH, HEADS, LAYERS, VOCABULARY = 32, 4, 3, 128


class Config(PretrainedConfig):
    model_type = "molmo"

    def __init__(self, **kwargs):
        super().__init__(pad_token_id=0, eos_token_id=2, **kwargs)
        self.hidden_size = WIDTH


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    angles = positions[:, None, :, None] / 100 ** (torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn_norm, self.ff_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.att_proj, self.attn_out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ff_proj, self.ff_out = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x, attention_bias=None, position_ids=None, drop_mask=None, layer_past=None, use_cache=False):
        split = self.att_proj(self.attn_norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in split)
        q, k = rotate(q, position_ids), rotate(k, position_ids)
        if layer_past is not None:
            k, v = torch.cat([layer_past[0], k], dim=2), torch.cat([layer_past[1], v], dim=2)
        n_queries, n_keys = q.shape[2], k.shape[2]
        bias = attention_bias[:, :, n_keys - n_queries : n_keys, :n_keys]
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.attn_out(out.transpose(1, 2).flatten(2))
        x = x + self.ff_out(functional.silu(self.ff_proj(self.ff_norm(x))))
        return x, (k, v) if use_cache else None


class VisionBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.feed_forward = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.feed_forward(x)


class ImageVit(nn.Module):
    def __init__(self):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(WIDTH))
        self.patch_embedding = nn.Linear(12, WIDTH)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([VisionBlock() for _ in range(2)])

    def forward(self, x):
        x = self.patch_embedding(x)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        for block in self.transformer.resblocks:
            x = block(x)
        return x


class VisionBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_vit = ImageVit()
        self.image_pooling_2d, self.image_projector = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, images, image_masks):
        rows, crops = images.shape[:2]
        features = self.image_vit(images.flatten(0, 1))[:, 1:]
        real = ~(images == -1).flatten(2).all(-1)
        features = features.unflatten(0, (rows, crops)) * real[:, :, None, None]
        pooled = features.unflatten(2, (-1, POOLED)).mean(3)
        return self.image_projector(self.image_pooling_2d(pooled))


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(VOCABULARY, WIDTH))

    def forward(self, x):
        return functional.embedding(x, self.embedding)


class Molmo(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": Embedding(),
                "blocks": nn.ModuleList([Block() for _ in range(LAYERS)]),
                "ln_f": nn.RMSNorm(WIDTH),
                "ff_out": nn.Linear(WIDTH, VOCABULARY, bias=False),
            }
        )
        self.vision_backbone = VisionBackbone()

    def forward(
        self, input_ids, attention_mask, images, image_masks, image_input_idx, position_ids, past, use_cache, last_only
    ):
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        x = self.transformer.wte(input_ids)
        if images is not None:
            features = self.vision_backbone(images, image_masks).flatten(1, 2)
            places = image_input_idx.flatten(1)
            valid = places >= 0
            rows = torch.arange(len(x))[:, None].expand_as(places)
            x[rows[valid], places[valid]] += features[valid]
        n_past = 0 if past is None else past[0][0].shape[-2]
        n_keys = n_past + x.shape[1]
        lowest = torch.finfo(torch.float).min
        bias = torch.full((n_keys, n_keys), lowest).triu(1)[None, None]
        bias = bias + (1.0 - attention_mask[:, :n_keys].float())[:, None, None, :] * lowest
        bias = bias.clamp(min=lowest)
        caches = []
        for i, block in enumerate(self.transformer.blocks):
            layer_past = None if past is None else past[i]
            x, cache = block(
                x, attention_bias=bias, position_ids=position_ids, layer_past=layer_past, use_cache=use_cache
            )
            caches.append(cache)
        if last_only:
            x = x[:, -1:]
        return self.transformer.ff_out(self.transformer.ln_f(x)), caches if use_cache else None


class MolmoForCausalLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = Config()
        self.model = Molmo()

    def get_output_embeddings(self):
        return self.model.transformer.ff_out

    def forward(
        self,
        input_ids,
        attention_mask=None,
        images=None,
        image_masks=None,
        image_input_idx=None,
        position_ids=None,
        past_key_values=None,
        labels=None,
        use_cache=False,
        last_logits_only=False,
    ):
        logits, caches = self.model(
            input_ids,
            attention_mask,
            images,
            image_masks,
            image_input_idx,
            position_ids,
            past_key_values,
            use_cache,
            last_logits_only,
        )
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=caches)


def molmo_adapter() -> MolmoAdapter:
    model = MolmoForCausalLM()
    reinitialise(model, 0)
    return MolmoAdapter(model)


def molmo_example(adapter: MolmoAdapter, tiles=(1, 1), n_text=6, seed=0) -> Batch:
    """One prompt: twelve rows of one low-resolution token, then a row of `tiles` crops' tokens."""
    generator = torch.Generator().manual_seed(seed)
    n_crops = tiles[0] * tiles[1]
    low, high = [PATCH_TOKEN, COLUMN_TOKEN] * 12, ([PATCH_TOKEN] * 12 + [COLUMN_TOKEN]) * n_crops
    text = lambda n: torch.randint(5, 110, (n,), generator=generator).tolist()  # noqa: E731
    ids = torch.tensor([[*text(3), *low, *high, *text(n_text)]])
    places = (ids[0] == PATCH_TOKEN).nonzero()[:, 0].view(1, 1 + n_crops, 12)
    example = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "images": torch.randn(1, 1 + n_crops, 24, 12, generator=generator),
        "image_masks": torch.ones(1, 1 + n_crops, 24),
        "image_input_idx": places,
    }
    example["groups"] = adapter.infer_groups(example)
    example["vision_grid"] = adapter.vision_grid(example)[0][None]
    return example
