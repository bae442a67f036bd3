"""Columns, dtypes, units and keys of every table. `docs/tables.md` says the same in prose; a test compares them."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from orchestrator.errors import DataError, did_you_mean

GROUPS = ("vision", "text")
TAPS = ("decoder", "projector", "encoder", "cross_k", "cross_v", "cross_out")
ATTRIBUTE_KINDS = ("count", "continuous", "categorical")


@dataclass(frozen=True)
class Column:
    dtype: type[pl.DataType] | pl.DataType
    meaning: str


@dataclass(frozen=True)
class Table:
    """A table's fixed columns. `open_columns` says what further columns (metrics, attributes) it may carry."""

    columns: dict[str, Column]
    key: tuple[str, ...]
    open_columns: str = ""

    def check(self, frame: pl.DataFrame, name: str) -> pl.DataFrame:
        """Return `frame` cast to the declared dtypes with declared columns first.

        Raises:
            DataError: a column is missing or an undeclared one is present.
        """
        missing = [c for c in self.columns if c not in frame.columns]
        if missing:
            hints = "".join(did_you_mean(c, frame.columns) for c in missing[:1])
            raise DataError(f"table {name}: columns {missing} are missing; present: {frame.columns}.{hints}")
        further = [c for c in frame.columns if c not in self.columns]
        if further and not self.open_columns:
            raise DataError(f"table {name}: columns {further} are not declared in schema.py")
        ordered = frame.select(*self.columns, *further)
        return ordered.cast({c: spec.dtype for c, spec in self.columns.items()})  # type: ignore[arg-type]


_S, _I, _F, _B = pl.String, pl.Int32, pl.Float64, pl.Boolean
_IMAGE = Column(_S, "image id, unique in its source")
_TAP = Column(_S, "where in the model: decoder, projector, encoder, cross_k, cross_v, cross_out")
_LAYER = Column(_I, "tap point; for the decoder 0 is the input of the first layer and L lies before the final norm")
_GROUP = Column(_S, "token group: vision or text")
_N = Column(_I, "number of images or questions the value rests on")
_LOW = Column(_F, "lower end of the bootstrap or Wilson interval")
_HIGH = Column(_F, "upper end of the interval")
_CHECKPOINT = Column(_S, "`base`, or the digest of the fine-tuning trial the model comes from")

TABLES: dict[str, Table] = {
    "images": Table(
        {
            "image_id": _IMAGE,
            "source": Column(_S, "scenes, coco or folder"),
            "index": Column(_I, "place in the source, from 0"),
            "width": Column(_I, "width, px"),
            "height": Column(_I, "height, px"),
        },
        ("image_id",),
        "one column an attribute of the source",
    ),
    "rejected": Table(
        {"image_id": _IMAGE, "index": Column(_I, "place in the source, from 0"), "reason": Column(_S, "what is wrong")},
        ("image_id",),
    ),
    "layer_metrics": Table(
        {
            "image_id": _IMAGE,
            "tap": _TAP,
            "layer": _LAYER,
            "group": _GROUP,
            "n_tokens": Column(_I, "tokens of the group in this image at this tap"),
        },
        ("image_id", "tap", "layer", "group"),
        "one float32 column a compression metric (docs/metrics.md)",
    ),
    "correlations": Table(
        {
            "tap": _TAP,
            "layer": _LAYER,
            "group": _GROUP,
            "metric": Column(_S, "compression metric"),
            "attribute": Column(_S, "image attribute"),
            "statistic": Column(_S, "spearman, partial_spearman or epsilon_squared (categorical attributes)"),
            "rho": Column(_F, "the statistic's value; null when a column is constant"),
            "p": Column(_F, "two-sided p value"),
            "q": Column(_F, "Benjamini-Hochberg q over the table's rows of the same statistic"),
            "ci_low": _LOW,
            "ci_high": _HIGH,
            "n": _N,
            "reason": Column(_S, "why the value is null, else null"),
        },
        ("tap", "layer", "group", "metric", "attribute", "statistic"),
    ),
    "probes": Table(
        {
            "tap": _TAP,
            "layer": _LAYER,
            "position": Column(_S, "kept position: vision_mean, vision_00, ..., text_mean, text_00, ..., last; pixels"),
            "attribute": Column(_S, "image attribute that is predicted"),
            "kind": Column(_S, "classification or regression"),
            "solver": Column(_S, "ridge, logistic or mlp"),
            "engine": Column(_S, "batched or sklearn"),
            "penalty": Column(_F, "L2 penalty chosen by inner cross-validation"),
            "score": Column(_F, "held-out score: accuracy (classification) or R2 (regression)"),
            "ci_low": _LOW,
            "ci_high": _HIGH,
            "balanced_score": Column(_F, "mean recall over classes; null for regression"),
            "baseline": Column(_F, "score of the majority class or the training mean"),
            "control": Column(_F, "score with shuffled labels"),
            "selectivity": Column(_F, "score minus control"),
            "n_train": _N,
            "n_test": _N,
            "n_classes": Column(_I, "classes kept; null for regression"),
            "n_left_out": Column(_I, "images left out because their class is rare"),
            "reason": Column(_S, "why the score is null, else null"),
        },
        ("tap", "layer", "position", "attribute", "solver"),
    ),
    "probe_search": Table(
        {
            "trial": Column(_I, "number of the sample; 0 is the study's own settings"),
            "solver": Column(_S, "linear (ridge for numbers, logistic for categories), mlp, or study: its own"),
            "positions": Column(
                _S, "positions probed: vision_mean, vision_single, text_mean, text_single, last or all"
            ),
            "standardise": Column(_B, "whether features were divided by their deviation"),
            "penalty": Column(_F, "L2 penalty; null where each probe chose its own"),
            "width": Column(_I, "width of the MLP's hidden layers; null unless mlp"),
            "depth": Column(_I, "hidden layers of the MLP; null unless mlp"),
            "learning_rate": Column(_F, "learning rate of the MLP; null unless mlp"),
            "steps": Column(_I, "steps of the longest MLP training run that was judged"),
            "stopped": Column(_B, "stopped early by the scheduler"),
            "skill": Column(
                _F, "mean of (score - baseline) / (1 - baseline) on validation images, part of the training"
            ),
            "held_out": Column(_F, "the same on held-out images no trial saw; for trial 0 and the best alone"),
            "best": Column(_B, "the highest skill on validation images"),
        },
        ("trial",),
    ),
    "answers": Table(
        {
            "question_id": Column(_S, "question id, unique in its set"),
            "image_id": _IMAGE,
            "family": Column(_S, "question family"),
            "tier": Column(_S, "low or high"),
            "wording": Column(_S, "group of wordings (templates.yaml); answers balance within one"),
            "question": Column(_S, "text of the question"),
            "answer": Column(_S, "right answer"),
            "predicted": Column(_S, "model's answer"),
            "correct": Column(_B, "exact match after normalisation"),
            "error": Column(_F, "absolute error of a count, or distance of a point in shares of the image; else null"),
        },
        ("question_id",),
    ),
    "trials": Table(
        {
            "trial": Column(_S, "digest of the trial"),
            "model": Column(_S, "base model"),
            "complexity_ratio": Column(_F, "share of high-tier examples"),
            "seed": Column(_I, "seed"),
            "status": Column(_S, "done or failed"),
            "n_steps": Column(_I, "optimiser steps"),
            "train_seconds": Column(_F, "time in training steps, their examples prepared, s"),
            "train_flops": Column(_F, "estimated floating-point operations of training"),
            "final_loss": Column(_F, "mean answer loss over the last tenth of steps"),
        },
        ("trial",),
        "settings (lora_rank, ...), accuracy/..., accuracy_base/..., compression/..., delta/..., drift/...",
    ),
    "training": Table(
        {
            "step": Column(_I, "optimiser step, from 0"),
            "loss": Column(_F, "mean cross-entropy of the step's answer tokens, nats"),
            "grad_norm": Column(_F, "norm of all gradients before clipping"),
            "rate": Column(_F, "share of the peak learning rates that the schedule allowed"),
            "n_answer_tokens": Column(_I, "answer tokens of the step"),
            "n_tokens": Column(_I, "sequence positions computed, padding included"),
            "seconds": Column(_F, "time of the step, its examples prepared, s"),
        },
        ("step",),
    ),
    "deletion": Table(
        {
            "checkpoint": _CHECKPOINT,
            "method": Column(_S, "random, norm, attention, similarity, leverage or downsample"),
            "layer": Column(_I, "0: after the projector; k: after k decoder layers"),
            "seed": Column(_I, "seed of random deletion; -1 for methods that draw nothing"),
            "deleted_share": Column(_F, "share of visual tokens asked to be deleted"),
            "kept_tokens": Column(_F, "mean number of visual tokens kept"),
            "family": Column(_S, "question family"),
            "tier": Column(_S, "low or high"),
            "accuracy": Column(_F, "share of exact matches"),
            "ci_low": _LOW,
            "ci_high": _HIGH,
            "n": _N,
            "seconds": Column(_F, "selection of tokens and answer, s per question"),
        },
        ("checkpoint", "method", "layer", "seed", "deleted_share", "family", "tier"),
    ),
    "deletion_answers": Table(
        {
            "checkpoint": _CHECKPOINT,
            "method": Column(_S, "as in `deletion`"),
            "layer": Column(_I, "as in `deletion`"),
            "seed": Column(_I, "as in `deletion`"),
            "deleted_share": Column(_F, "as in `deletion`"),
            "question_id": Column(_S, "question id"),
            "image_id": _IMAGE,
            "family": Column(_S, "question family"),
            "tier": Column(_S, "low or high"),
            "half": Column(_S, "choose or judge: the half of the images the question belongs to"),
            "n_vision": Column(_I, "visual tokens of the image"),
            "kept_tokens": Column(_I, "visual tokens the decoder saw (from `layer` on)"),
            "gflop": Column(_F, "operations of selection and of the decoder on the prompt, 1e9"),
            "correct": Column(_B, "exact match"),
        },
        ("checkpoint", "method", "layer", "seed", "deleted_share", "question_id"),
    ),
    "question_metrics": Table(
        {
            "question_id": Column(_S, "question id"),
            "depth": Column(_S, "projector, or the middle of the early, middle or late third of the decoder"),
        },
        ("question_id", "depth"),
        "one float32 column a compression metric of the image's tokens (`cross_kv`: of cross-attention's values)",
    ),
    "policy": Table(
        {
            "policy": Column(
                _S, "fixed, fixed by family (a tier under its families' own rules), or adaptive (by a metric)"
            ),
            "tier": Column(_S, "low or high"),
            "family": Column(_S, "question family, or `all` of the tier"),
            "method": Column(_S, "how tokens are chosen"),
            "layer": Column(_I, "where they are deleted, as in `deletion`; null for several"),
            "deleted_share": Column(_F, "share deleted, mean over questions"),
            "kept_share": Column(_F, "visual tokens present, share of all, mean over the layers that read them"),
            "accuracy": Column(_F, "accuracy with the policy, judging half"),
            "accuracy_full": Column(_F, "accuracy with all tokens, judging half"),
            "difference": Column(_F, "accuracy minus accuracy_full"),
            "ci_low": _LOW,
            "ci_high": _HIGH,
            "accuracy_random": Column(_F, "accuracy with as many tokens deleted at random; null where not measured"),
            "accuracy_downsample": Column(_F, "accuracy of the image downsampled as far; null where not measured"),
            "gflop_share": Column(_F, "operations (as `gflop`) relative to all tokens"),
            "n": _N,
        },
        ("policy", "tier", "family"),
    ),
    "evaluation": Table(
        {
            "system": Column(_S, "all tokens, fixed, adaptive, or its rivals random and downsample"),
            "tier": Column(_S, "low or high"),
            "family": Column(_S, "question family, or `all` of the tier"),
            "accuracy": Column(_F, "share of exact matches"),
            "ci_low": _LOW,
            "ci_high": _HIGH,
            "difference": Column(_F, "accuracy minus that with all tokens"),
            "difference_low": Column(_F, "lower end of its bootstrap interval, paired by question"),
            "difference_high": Column(_F, "upper end of that interval"),
            "kept_tokens": Column(_F, "mean number of visual tokens the decoder saw to the end"),
            "kept_share": Column(_F, "visual tokens present, share of all, mean over the layers that read them"),
            "seconds": Column(_F, "selection of tokens and answer, s per question of the tier"),
            "gflop": Column(_F, "operations of selection and of the decoder on the prompt, 1e9 per question"),
            "n": _N,
        },
        ("system", "tier", "family"),
    ),
    "link": Table(
        {
            "tier": Column(_S, "low or high"),
            "metric": Column(_S, "compression metric of the image's vision tokens"),
            "depth": Column(_S, "where in the model, as in `question_metrics`"),
            "method": Column(_S, "how the tokens deleted are chosen"),
            "rho": Column(_F, "Spearman correlation, within families, with the share of tokens a right answer needs"),
            "ci_low": _LOW,
            "ci_high": _HIGH,
            "p": Column(_F, "two-sided p value"),
            "q": Column(_F, "Benjamini-Hochberg q over the tier's rows"),
            "n": _N,
        },
        ("tier", "metric", "depth"),
    ),
    "knockout": Table(
        {
            "checkpoint": _CHECKPOINT,
            "first_layer": Column(_I, "first decoder layer of the window, from 0"),
            "last_layer": Column(_I, "last decoder layer of the window, inclusive; -1 with first 0 for no knock-out"),
            "family": Column(_S, "question family"),
            "tier": Column(_S, "low or high"),
            "accuracy": Column(_F, "share of exact matches"),
            "ci_low": _LOW,
            "ci_high": _HIGH,
            "n": _N,
        },
        ("checkpoint", "first_layer", "last_layer", "family", "tier"),
    ),
    "patching": Table(
        {
            "checkpoint": _CHECKPOINT,
            "layer": Column(_I, "decoder tap point whose vision-token states are replaced"),
            "attribute": Column(_S, "the attribute in which the two scenes differ"),
            "flip_share": Column(_F, "share of pairs whose answer becomes the donor's"),
            "ci_low": _LOW,
            "ci_high": _HIGH,
            "n": _N,
        },
        ("checkpoint", "layer", "attribute"),
    ),
}


def check_table(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """`frame` cast to table `name`'s declared dtypes; raises `DataError` on missing or undeclared columns."""
    if name not in TABLES:
        raise DataError(f"unknown table {name!r}.{did_you_mean(name, TABLES)}")
    return TABLES[name].check(frame, name)


def to_markdown() -> str:
    """Every table as Markdown: the block of `docs/tables.md` between its `columns` markers."""
    parts = []
    for name, table in TABLES.items():
        lines = [f"### `{name}`", "", f"Key: {', '.join(f'`{k}`' for k in table.key)}.", ""]
        lines += ["| column | dtype | meaning |", "|---|---|---|"]
        lines += [f"| `{c}` | {spec.dtype} | {spec.meaning} |" for c, spec in table.columns.items()]
        if table.open_columns:
            lines += ["", f"Further columns: {table.open_columns}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
