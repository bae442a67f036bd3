"""Drift: change of a model's hidden states by fine-tuning, measured on the same images before and after.

A `Snapshot` holds the compression metrics of every image and, for the comparison of states, tokens of each image: all
up to a limit, else a seeded sample that is the same before and after. The base model's snapshot is taken once and used
by every trial.

Shapes: I images, L tap layers, T kept tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from orchestrator.capture.taps import State, Taps
from orchestrator.compression.alignment import linear_cka, relative_drift, top5_alignment
from orchestrator.compression.depth import THIRDS, third_of
from orchestrator.compression.metrics import compute
from orchestrator.models.adapter import Adapter
from orchestrator.models.batching import Batch
from orchestrator.models.memory import retry_with_smaller_batch
from orchestrator.stats.resample import bootstrap_means
from orchestrator.store.tables.core import check_table

N_BOOTSTRAP = 500
N_CKA_TOKENS = 1024
"""Number of tokens, over all images, that CKA compares; the estimator is unbiased for any number."""


@dataclass(frozen=True)
class Snapshot:
    """States and metrics of one model on the fixed images."""

    metrics: pl.DataFrame
    """Table `layer_metrics`."""
    states: dict[str, np.ndarray]
    """`TAP-GROUP` -> float32 (I, L, T, D), zero at padding."""
    counts: dict[str, np.ndarray]
    """`TAP-GROUP` -> int64 (I,), number of kept tokens of each image."""
    layers: dict[str, list[int]]
    """`TAP-GROUP` -> the tap's layers, in order."""


def group_taps(adapter: Adapter) -> dict[str, str]:
    """Tap at which each group's states are compared: the residual stream; in a `cross_kv` model the values for vision.

    Vision tokens never enter the decoder of a `cross_kv` model; text tokens read them as the values of each
    cross-attention layer.
    """
    return {"vision": "decoder" if adapter.vision_kind == "residual" else "cross_v", "text": "decoder"}


def take_snapshot(
    adapter: Adapter,
    examples: Sequence[Batch],
    image_ids: Sequence[str],
    batches: Iterable[Sequence[int]],
    metrics: Sequence[str] | None,
    n_tokens: int,
) -> Snapshot:
    """Run the model on prepared images and keep metrics and states; questions without an image have text alone.

    Args:
        examples: model inputs of each image with the fixed prompt.
        batches: indices of the examples of each forward pass.
        metrics: compression metrics; None for all of the registry.
        n_tokens: maximum number of tokens per image and group kept for the comparison of states.
    """
    rows: list[pl.DataFrame] = []
    kept: dict[str, dict[int, dict[int, np.ndarray]]] = {}
    taps_of = group_taps(adapter)

    def measure(indices: Sequence[int]) -> None:
        states: list[State] = []
        tables: list[pl.DataFrame] = []
        with Taps(adapter, sorted(set(taps_of.values())), on_state=states.append), torch.no_grad():
            adapter.run(adapter.collate([examples[i] for i in indices]), logits_to_keep=1)
        for state in states:
            for group, mask in (("vision", state.vision), ("text", state.text)):
                if taps_of[group] != state.tap or mask is None:
                    continue
                tables.append(_metric_rows(state, group, mask, [image_ids[i] for i in indices], metrics))
                by_layer = kept.setdefault(f"{state.tap}-{group}", {}).setdefault(state.layer, {})
                for row, i in enumerate(indices):
                    by_layer[i] = keep_tokens(state.hidden[row][mask[row]], n_tokens, seed=i)
        rows.extend(tables)

    retry_with_smaller_batch(batches, measure)
    order = pl.DataFrame({"image_id": list(image_ids), "place": range(len(image_ids))})
    table = (
        pl.concat(rows)
        .filter(pl.col("n_tokens") > 0)
        .join(order, on="image_id", maintain_order="left")
        .sort("place", "tap", "layer", "group")
    )
    stacked = {name: _stack(by_layer, len(examples)) for name, by_layer in kept.items()}
    return Snapshot(
        check_table(table.drop("place"), "layer_metrics"),
        {name: arrays for name, (arrays, _) in stacked.items()},
        {name: counts for name, (_, counts) in stacked.items()},
        {name: sorted(by_layer) for name, by_layer in kept.items()},
    )


def _metric_rows(
    state: State, group: str, mask: Bool[Tensor, "B N"], ids: Sequence[str], metrics: Sequence[str] | None
) -> pl.DataFrame:
    values = compute(state.hidden, mask, metrics)
    return pl.DataFrame(
        {
            "image_id": ids,
            "tap": [state.tap] * len(ids),
            "layer": [state.layer] * len(ids),
            "group": [group] * len(ids),
            "n_tokens": mask.sum(1).tolist(),
            **{name: column.cpu().numpy() for name, column in values.items()},
        }
    )


def keep_tokens(tokens: Float[Tensor, "N D"], limit: int, seed: int) -> Float32[np.ndarray, "T D"]:
    """All tokens, or a sorted sample of `limit`, determined by (seed, N) only."""
    if len(tokens) > limit:
        chosen = np.sort(np.random.default_rng([seed, len(tokens)]).choice(len(tokens), limit, replace=False))
        tokens = tokens[torch.from_numpy(chosen).to(tokens.device)]
    return tokens.float().cpu().numpy()


def _stack(by_layer: dict[int, dict[int, np.ndarray]], n_images: int) -> tuple[np.ndarray, np.ndarray]:
    first = by_layer[min(by_layer)]
    counts = np.array([len(first.get(i, ())) for i in range(n_images)])
    width = next(iter(first.values())).shape[1]
    stacked = np.zeros((n_images, len(by_layer), counts.max(), width), dtype=np.float32)
    for place, layer in enumerate(sorted(by_layer)):
        for i, tokens in by_layer[layer].items():
            stacked[i, place, : len(tokens)] = tokens
    return stacked, counts


# ---------------------------------------------------------------- comparison with the base model


def compare(base: Snapshot, tuned: Snapshot) -> dict[str, float]:
    """Columns of table `trials`, averaged over images and the layers of each depth third.

    - `compression/GROUP/METRIC/THIRD`: the tuned model's mean.
    - `delta/GROUP/METRIC/THIRD` and `_low`, `_high`: change against the base model, bootstrap interval over images.
    - `drift/GROUP/THIRD` and `_low`, `_high`: relative drift of the states.
    - `cka/GROUP/THIRD`: debiased linear CKA over tokens of all images.
    - `alignment/GROUP/THIRD` and `_low`, `_high`: alignment of the top five right singular directions with the base's.
    """
    columns: dict[str, float] = {}
    for name, layers in base.layers.items():
        group = name.rsplit("-", 1)[1]
        thirds = np.array([third_of(place, len(layers)) for place in range(len(layers))])
        columns |= _metric_changes(base, tuned, name, dict(zip(layers, thirds, strict=True)))
        values = _state_changes(base.states[name], tuned.states[name], base.counts[name])
        for third in sorted(set(thirds), key=THIRDS.index):
            inside = thirds == third
            for measure in ("drift", "alignment"):
                _with_interval(columns, f"{measure}/{group}/{third}", values[measure][:, inside].mean(1))
            columns[f"cka/{group}/{third}"] = float(values["cka"][inside].mean())
    return columns


def _state_changes(base: np.ndarray, tuned: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """`drift` and `alignment` (I, L), `cka` (L,); computed on a GPU if there is one, as the products are large."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    is_token = torch.from_numpy(np.arange(base.shape[2]) < counts[:, None]).to(device)
    pooled = np.random.default_rng(0).permutation(int(is_token.sum()))[:N_CKA_TOKENS]
    drift, alignment, cka = [], [], []
    for layer in range(base.shape[1]):
        before, after = (torch.from_numpy(np.array(states[:, layer])).to(device) for states in (base, tuned))
        drift.append(relative_drift(before, after, is_token))
        alignment.append(top5_alignment(before, is_token, after, is_token))
        cka.append(linear_cka(before[is_token][pooled][None], after[is_token][pooled][None])[0])
    columns = {"drift": torch.stack(drift, 1), "alignment": torch.stack(alignment, 1), "cka": torch.stack(cka)}
    return {name: values.double().cpu().numpy() for name, values in columns.items()}


def _metric_changes(base: Snapshot, tuned: Snapshot, name: str, thirds: dict[int, str]) -> dict[str, float]:
    tap, group = name.rsplit("-", 1)
    metrics = [c for c in base.metrics.columns if c not in ("image_id", "tap", "layer", "group", "n_tokens")]
    means = []
    for snapshot in (base, tuned):
        table = snapshot.metrics.filter((pl.col("tap") == tap) & (pl.col("group") == group))
        third = pl.col("layer").replace_strict(thirds, return_dtype=pl.String).alias("third")
        averages = [pl.col(m).cast(pl.Float64).fill_nan(None).mean() for m in metrics]
        means.append(table.with_columns(third).group_by("image_id", "third", maintain_order=True).agg(averages))
    both = means[0].join(means[1], on=["image_id", "third"], suffix="_tuned", maintain_order="left")
    columns: dict[str, float] = {}
    for (third,), part in both.group_by(["third"], maintain_order=True):
        for metric in metrics:
            after, before = part[f"{metric}_tuned"].to_numpy(), part[metric].to_numpy()
            valid = np.isfinite(after) & np.isfinite(before)
            if valid.any():
                columns[f"compression/{group}/{metric}/{third}"] = float(after[valid].mean())
                _with_interval(columns, f"delta/{group}/{metric}/{third}", (after - before)[valid])
    return columns


def compare_asked(base: pl.DataFrame, tuned: pl.DataFrame, answers: pl.DataFrame) -> dict[str, float]:
    """`compression` and `delta` columns as in `compare`, under `asked/TIER/`, from tables by question id.

    Args:
        answers: table `answers`, for the tier of each question.
    """
    tiers = answers.select(pl.col("question_id").alias("image_id"), "tier")
    columns: dict[str, float] = {}
    for (tier,), ids in tiers.group_by(["tier"], maintain_order=True):
        parts = [Snapshot(table.join(ids, on="image_id", how="semi"), {}, {}, {}) for table in (base, tuned)]
        for (tap, group), rows in parts[0].metrics.group_by(["tap", "group"], maintain_order=True):
            layers = sorted(rows["layer"].unique().to_list())
            thirds = {layer: third_of(place, len(layers)) for place, layer in enumerate(layers)}
            changes = _metric_changes(parts[0], parts[1], f"{tap}-{group}", thirds)
            columns |= {f"asked/{tier}/{name}": value for name, value in changes.items()}
    return columns


def _with_interval(columns: dict[str, float], name: str, values: np.ndarray) -> None:
    """Add the mean of an image-wise value and its 95 % bootstrap interval over images; no interval for one image."""
    mean, low, high = (float(end[0]) for end in bootstrap_means(values[:, None], n_resamples=N_BOOTSTRAP))
    interval = {} if np.isnan(low) else {f"{name}_low": low, f"{name}_high": high}
    columns |= {name: mean, **interval}
