"""Columns, dtypes, units and keys of every table. `docs/tables.md` says the same in prose; a test compares them."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from orchestrator.errors import DataError, did_you_mean
from orchestrator.store.tables.causal import CAUSAL_TABLES
from orchestrator.store.tables.columns import (
    BOOL,
    CLUSTER,
    FLOAT,
    GROUP,
    HIGH,
    IMAGE,
    INT,
    LAYER,
    LOW,
    STRING,
    TAP,
    Column,
    N,
    Table,
)
from orchestrator.store.tables.reading import READING_TABLES
from orchestrator.store.tables.rivals import RIVAL_TABLES

GROUPS = ("vision", "text")

_REJECTED_ROWS = Table(
    {
        "question_id": Column(STRING, "id of a row of question files; `bad-NUMBER` of one that has none"),
        "index": Column(INT, "place in the source, from 0"),
        "reason": Column(STRING, "file, line and what is wrong"),
    },
    ("question_id",),
)

TABLES: dict[str, Table] = {
    "images": Table(
        {
            "image_id": IMAGE,
            "source": Column(STRING, "scenes, coco, folder or questions"),
            "index": Column(INT, "place in the source, from 0"),
            "width": Column(INT, "width, px"),
            "height": Column(INT, "height, px"),
        },
        ("image_id",),
        "one column an attribute of the source",
    ),
    "rejected": Table(
        {
            "image_id": IMAGE,
            "index": Column(INT, "place in the source, from 0"),
            "reason": Column(STRING, "what is wrong"),
        },
        ("image_id",),
    ),
    "trial_rejected": _REJECTED_ROWS,
    "ablate_rejected": _REJECTED_ROWS,
    "layer_metrics": Table(
        {
            "image_id": IMAGE,
            "tap": TAP,
            "layer": LAYER,
            "group": GROUP,
            "n_tokens": Column(INT, "tokens of the group in this image at this tap"),
        },
        ("image_id", "tap", "layer", "group"),
        "one float32 column a compression metric (docs/metrics.md)",
    ),
    "picture_metrics": Table(
        {
            "image_id": Column(STRING, "id of a question about several images"),
            "picture": Column(INT, "which of its images, from 0"),
            "tap": TAP,
            "layer": LAYER,
            "n_tokens": Column(INT, "visual tokens of this image at this tap"),
        },
        ("image_id", "picture", "tap", "layer"),
        "one float32 column a compression metric (docs/metrics.md), over this image's visual tokens alone",
    ),
    "asked_metrics": Table(
        {
            "image_id": Column(STRING, "id of a held-out question; the metrics are of its own image and prompt"),
            "tap": TAP,
            "layer": LAYER,
            "group": GROUP,
            "n_tokens": Column(INT, "tokens of the group in this question's image or prompt at this tap"),
        },
        ("image_id", "tap", "layer", "group"),
        "one float32 column a compression metric (docs/metrics.md)",
    ),
    "correlations": Table(
        {
            "tap": TAP,
            "layer": LAYER,
            "group": GROUP,
            "metric": Column(STRING, "compression metric"),
            "attribute": Column(STRING, "image attribute"),
            "statistic": Column(STRING, "spearman, conditional_spearman or epsilon_squared (categorical attributes)"),
            "rho": Column(FLOAT, "the statistic's value; null when a column is constant"),
            "p": Column(FLOAT, "two-sided p value"),
            "q": Column(FLOAT, "Benjamini-Hochberg q over the table's rows of the same statistic"),
            "ci_low": LOW,
            "ci_high": HIGH,
            "shape_p": Column(FLOAT, "p of monotonicity: small where the relation turns; statistic spearman alone"),
            "shape_q": Column(FLOAT, "Benjamini-Hochberg q over the table's `shape_p`"),
            "turning_point": Column(FLOAT, "value of the attribute up to which the left branch reaches"),
            "rho_below": Column(FLOAT, "Spearman's rho up to the turning point"),
            "rho_above": Column(FLOAT, "Spearman's rho beyond it"),
            "n": N,
            "reason": Column(STRING, "why the value is null, else null"),
        },
        ("tap", "layer", "group", "metric", "attribute", "statistic"),
    ),
    "attribute_correlations": Table(
        {
            "first": Column(STRING, "image attribute, a count or continuous"),
            "second": Column(STRING, "another one"),
            "first_role": Column(
                STRING, "factor (drawn independently by a design), derived (follows from several) or measured"
            ),
            "second_role": Column(STRING, "the same of the second"),
            "rho": Column(FLOAT, "Spearman's rho over the captured images that have both"),
            "n": N,
        },
        ("first", "second"),
    ),
    "probes": Table(
        {
            "tap": TAP,
            "layer": LAYER,
            "position": Column(
                STRING, "kept position: vision_mean, vision_00, ..., text_mean, text_00, ..., last, before; pixels"
            ),
            "attribute": Column(STRING, "image attribute that is predicted"),
            "kind": Column(STRING, "classification or regression"),
            "solver": Column(STRING, "ridge, logistic or mlp"),
            "engine": Column(STRING, "batched or sklearn"),
            "penalty": Column(FLOAT, "L2 penalty chosen by inner cross-validation"),
            "score": Column(FLOAT, "held-out score: accuracy (classification) or R2 (regression)"),
            "ci_low": LOW,
            "ci_high": HIGH,
            "balanced_score": Column(FLOAT, "mean recall over classes; null for regression"),
            "baseline": Column(FLOAT, "score of the majority class or the training mean"),
            "control": Column(FLOAT, "score with shuffled labels"),
            "selectivity": Column(FLOAT, "score minus control"),
            "skill_beyond": Column(
                FLOAT,
                "regression: rank correlation of held-out predictions with the truth among images alike in `beyond`",
            ),
            "beyond_low": Column(FLOAT, "lower end of its 95 % interval"),
            "beyond_high": Column(FLOAT, "upper end of its 95 % interval"),
            "beyond": Column(STRING, "attributes held fixed in it; null where it is not defined"),
            "n_train": N,
            "n_test": N,
            "n_classes": Column(INT, "classes kept; null for regression"),
            "n_left_out": Column(INT, "images left out because their class is rare"),
            "reason": Column(STRING, "why the score is null, else null"),
        },
        ("tap", "layer", "position", "attribute", "solver"),
    ),
    "hypotheses": Table(
        {
            "point": Column(STRING, "model and data that it is judged on"),
            "hypothesis": Column(STRING, "name of the claim"),
            "claim": Column(STRING, "the claim in words"),
            "rule": Column(STRING, "when it counts as supported, contradicted or equivalent to nothing"),
            "verdict": Column(STRING, "supported, contradicted, equivalent to nothing, undecided or not measured"),
            "effect_name": Column(STRING, "what the effect is, with its unit"),
            "effect": Column(FLOAT, "the effect; null where nothing was measured"),
            "ci_low": Column(FLOAT, "lower end of its 95 % interval"),
            "ci_high": Column(FLOAT, "upper end of its 95 % interval"),
            "smallest": Column(FLOAT, "smallest effect of interest, same unit"),
            "n": Column(INT, "images, questions, places or seeds that the effect rests on"),
            "note": Column(STRING, "what was compared, or why nothing was measured"),
        },
        ("point", "hypothesis"),
    ),
    "probe_search": Table(
        {
            "trial": Column(INT, "number of the sample; 0 is the study's own settings"),
            "solver": Column(STRING, "linear (ridge for numbers, logistic for categories), mlp, or study: its own"),
            "positions": Column(
                STRING, "positions probed: vision_mean, vision_single, text_mean, text_single, last, before or all"
            ),
            "standardise": Column(BOOL, "whether features were divided by their deviation"),
            "penalty": Column(FLOAT, "L2 penalty; null where each probe chose its own"),
            "width": Column(INT, "width of the MLP's hidden layers; null unless mlp"),
            "depth": Column(INT, "hidden layers of the MLP; null unless mlp"),
            "learning_rate": Column(FLOAT, "learning rate of the MLP; null unless mlp"),
            "steps": Column(INT, "steps of the longest MLP training run that was judged"),
            "stopped": Column(BOOL, "stopped early by the scheduler"),
            "skill": Column(
                FLOAT, "mean of (score - baseline) / (1 - baseline) on validation images, part of the training"
            ),
            "held_out": Column(FLOAT, "the same on held-out images no trial saw; for trial 0 and the best alone"),
            "best": Column(BOOL, "the highest skill on validation images"),
        },
        ("trial",),
    ),
    "answers": Table(
        {
            "question_id": Column(STRING, "question id, unique in its set"),
            "image_id": IMAGE,
            "cluster": CLUSTER,
            "family": Column(STRING, "question family"),
            "tier": Column(STRING, "low or high"),
            "wording": Column(STRING, "group of wordings (templates.yaml); answers balance within one"),
            "question": Column(STRING, "text of the question"),
            "answer": Column(STRING, "right answer"),
            "predicted": Column(STRING, "answer judged: the most probable choice, or what was generated"),
            "correct": Column(
                BOOL, "whether it is right: equal after normalisation, a place near enough, a score >= 0.5"
            ),
            "score": Column(FLOAT, "score by the rule of the question, 0 to 1; 0 or 1 where there is no soft rule"),
            "error": Column(
                FLOAT, "absolute error of a count, or distance of a point in shares of the image; else null"
            ),
            "generated": Column(STRING, "what the model wrote by itself, greedily"),
            "generated_correct": Column(BOOL, "whether that is right"),
            "generated_score": Column(FLOAT, "score of that"),
            "scoring": Column(STRING, "rule of a question file (docs/data.md), or `family`: that of its family"),
            "place": Column(
                INT, "place of the answer judged among the choices listed in the prompt, from 0; else null"
            ),
            "valid": Column(BOOL, "whether that has the form of an answer: one of the choices, or coordinates"),
        },
        ("question_id",),
    ),
    "trials": Table(
        {
            "trial": Column(STRING, "digest of the trial"),
            "model": Column(STRING, "base model"),
            "complexity_ratio": Column(FLOAT, "share of high-tier examples"),
            "seed": Column(INT, "seed"),
            "status": Column(STRING, "done or failed"),
            "n_steps": Column(INT, "optimiser steps"),
            "train_seconds": Column(FLOAT, "time in training steps, their examples prepared, s"),
            "train_flops": Column(FLOAT, "estimated floating-point operations of training"),
            "final_loss": Column(FLOAT, "mean answer loss over the last tenth of steps"),
        },
        ("trial",),
        "settings (lora_rank, ...), accuracy/..., accuracy_base/..., score/..., yes_no/..., position_bias/..., "
        "compression/..., delta/..., drift/...",
    ),
    "training": Table(
        {
            "step": Column(INT, "optimiser step, from 0"),
            "loss": Column(FLOAT, "mean cross-entropy of the step's answer tokens, nats"),
            "grad_norm": Column(FLOAT, "norm of all gradients before clipping"),
            "rate": Column(FLOAT, "share of the peak learning rates that the schedule allowed"),
            "n_answer_tokens": Column(INT, "answer tokens of the step"),
            "n_tokens": Column(INT, "sequence positions of the step's examples, padding left out"),
            "seconds": Column(FLOAT, "time of the step, its examples prepared, s"),
        },
        ("step",),
    ),
    **CAUSAL_TABLES,
    **RIVAL_TABLES,
    **READING_TABLES,
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


def rejected_rows(rows: Sequence[tuple[int, str, str]], table: str) -> pl.DataFrame:
    """Table `trial_rejected` or `ablate_rejected`, from place, id and reason of each row."""
    schema = {name: column.dtype for name, column in TABLES[table].columns.items()}
    return check_table(pl.DataFrame([(name, i, reason) for i, name, reason in rows], schema, orient="row"), table)
