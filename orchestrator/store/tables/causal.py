"""Columns of the tables of the causal checks; `schema.py` has the others."""

from __future__ import annotations

from orchestrator.store.tables.columns import BOOL, CHECKPOINT, FLOAT, HIGH, IMAGE, INT, LOW, STRING, Column, N, Table

CAUSAL_TABLES: dict[str, Table] = {
    "deletion": Table(
        {
            "checkpoint": CHECKPOINT,
            "method": Column(STRING, "random, norm, attention, similarity, leverage or downsample"),
            "layer": Column(INT, "0: after the projector; k: after k decoder layers"),
            "seed": Column(INT, "seed of random deletion; -1 for methods that draw nothing"),
            "deleted_share": Column(FLOAT, "share of visual tokens asked to be deleted"),
            "kept_tokens": Column(FLOAT, "mean number of visual tokens kept"),
            "family": Column(STRING, "question family"),
            "tier": Column(STRING, "low or high"),
            "accuracy": Column(FLOAT, "share of exact matches"),
            "ci_low": LOW,
            "ci_high": HIGH,
            "n": N,
            "seconds": Column(FLOAT, "selection of tokens and answer, s per question"),
        },
        ("checkpoint", "method", "layer", "seed", "deleted_share", "family", "tier"),
    ),
    "deletion_answers": Table(
        {
            "checkpoint": CHECKPOINT,
            "method": Column(STRING, "as in `deletion`"),
            "layer": Column(INT, "as in `deletion`"),
            "seed": Column(INT, "as in `deletion`"),
            "deleted_share": Column(FLOAT, "as in `deletion`"),
            "question_id": Column(STRING, "question id"),
            "image_id": IMAGE,
            "family": Column(STRING, "question family"),
            "tier": Column(STRING, "low or high"),
            "half": Column(STRING, "choose or judge: the half of the images the question belongs to"),
            "n_vision": Column(INT, "visual tokens of the image"),
            "kept_tokens": Column(INT, "visual tokens the decoder saw (from `layer` on)"),
            "gflop": Column(FLOAT, "operations of selection and of the decoder on the prompt, 1e9"),
            "correct": Column(BOOL, "exact match"),
        },
        ("checkpoint", "method", "layer", "seed", "deleted_share", "question_id"),
    ),
    "question_metrics": Table(
        {
            "question_id": Column(STRING, "question id"),
            "depth": Column(STRING, "projector, or the middle of the early, middle or late third of the decoder"),
        },
        ("question_id", "depth"),
        "one float32 column a compression metric of the image's tokens (`cross_kv`: of cross-attention's values)",
    ),
    "policy": Table(
        {
            "policy": Column(
                STRING, "fixed, fixed by family (a tier under its families' own rules), or adaptive (by a metric)"
            ),
            "tier": Column(STRING, "low or high"),
            "family": Column(STRING, "question family, or `all` of the tier"),
            "method": Column(STRING, "how tokens are chosen"),
            "layer": Column(INT, "where they are deleted, as in `deletion`; null for several"),
            "deleted_share": Column(FLOAT, "share deleted, mean over questions"),
            "kept_share": Column(FLOAT, "visual tokens present, share of all, mean over the layers that read them"),
            "accuracy": Column(FLOAT, "accuracy with the policy, judging half"),
            "accuracy_full": Column(FLOAT, "accuracy with all tokens, judging half"),
            "difference": Column(FLOAT, "accuracy minus accuracy_full"),
            "ci_low": LOW,
            "ci_high": HIGH,
            "accuracy_random": Column(FLOAT, "accuracy with as many tokens deleted at random; null where not measured"),
            "accuracy_downsample": Column(FLOAT, "accuracy of the image downsampled as far; null where not measured"),
            "gflop_share": Column(FLOAT, "operations (as `gflop`) relative to all tokens"),
            "n": N,
        },
        ("policy", "tier", "family"),
    ),
    "evaluation": Table(
        {
            "system": Column(STRING, "all tokens, fixed, adaptive, or its rivals random and downsample"),
            "tier": Column(STRING, "low or high"),
            "family": Column(STRING, "question family, or `all` of the tier"),
            "accuracy": Column(FLOAT, "share of exact matches"),
            "ci_low": LOW,
            "ci_high": HIGH,
            "difference": Column(FLOAT, "accuracy minus that with all tokens"),
            "difference_low": Column(FLOAT, "lower end of its bootstrap interval, paired by question"),
            "difference_high": Column(FLOAT, "upper end of that interval"),
            "kept_tokens": Column(FLOAT, "mean number of visual tokens the decoder saw to the end"),
            "kept_share": Column(FLOAT, "visual tokens present, share of all, mean over the layers that read them"),
            "seconds": Column(FLOAT, "selection of tokens and answer, s per question of the tier"),
            "gflop": Column(FLOAT, "operations of selection and of the decoder on the prompt, 1e9 per question"),
            "n": N,
        },
        ("system", "tier", "family"),
    ),
    "link": Table(
        {
            "tier": Column(STRING, "low or high"),
            "metric": Column(STRING, "compression metric of the image's vision tokens"),
            "depth": Column(STRING, "where in the model, as in `question_metrics`"),
            "method": Column(STRING, "how the tokens deleted are chosen"),
            "rho": Column(
                FLOAT, "Spearman correlation, within families, with the share of tokens a right answer needs"
            ),
            "ci_low": LOW,
            "ci_high": HIGH,
            "p": Column(FLOAT, "two-sided p value"),
            "q": Column(FLOAT, "Benjamini-Hochberg q over the tier's rows"),
            "n": N,
        },
        ("tier", "metric", "depth"),
    ),
    "knockout": Table(
        {
            "checkpoint": CHECKPOINT,
            "first_layer": Column(INT, "first decoder layer of the window, from 0"),
            "last_layer": Column(INT, "last decoder layer of the window, inclusive; -1 with first 0 for no knock-out"),
            "family": Column(STRING, "question family"),
            "tier": Column(STRING, "low or high"),
            "accuracy": Column(FLOAT, "share of exact matches"),
            "ci_low": LOW,
            "ci_high": HIGH,
            "n": N,
        },
        ("checkpoint", "first_layer", "last_layer", "family", "tier"),
    ),
    "patching": Table(
        {
            "checkpoint": CHECKPOINT,
            "layer": Column(INT, "decoder tap point whose vision-token states are replaced"),
            "attribute": Column(STRING, "the attribute in which the two scenes differ"),
            "flip_share": Column(FLOAT, "share of pairs whose answer becomes the donor's"),
            "ci_low": LOW,
            "ci_high": HIGH,
            "n": N,
        },
        ("checkpoint", "layer", "attribute"),
    ),
}
