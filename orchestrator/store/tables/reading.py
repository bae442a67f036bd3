"""Columns of the tables that read a model without changing it: attention to the image, and lenses."""

from __future__ import annotations

from orchestrator.store.tables.columns import CHECKPOINT, FLOAT, HIGH, INT, LOW, STRING, Column, N, Table

READING_TABLES: dict[str, Table] = {
    "attention": Table(
        {
            "checkpoint": CHECKPOINT,
            "layer": Column(INT, "decoder layer (`cross_kv`: cross-attention layer)"),
            "target": Column(STRING, "whose attention: question (mean over its tokens) or last (token of the prompt)"),
            "tier": Column(STRING, "low or high"),
            "family": Column(STRING, "question family, or `all` of the tier"),
            "to_image": Column(FLOAT, "share of the attention that goes to the image, mean over heads and images"),
            "to_image_low": Column(FLOAT, "lower end of its 95 % interval (Student's t over images)"),
            "to_image_high": Column(FLOAT, "upper end of that interval"),
            "on_objects": Column(FLOAT, "of it, share on tokens that show objects; null where boxes are not known"),
            "on_objects_low": Column(FLOAT, "lower end of its 95 % interval, as `to_image_low`"),
            "on_objects_high": Column(FLOAT, "upper end of that interval"),
            "over_share": Column(
                FLOAT, "on_objects minus the share of visual tokens that show objects; 0: no preference"
            ),
            "over_share_low": Column(FLOAT, "lower end of its 95 % interval, as `to_image_low`"),
            "over_share_high": Column(FLOAT, "upper end of that interval"),
            "object_share": Column(FLOAT, "share of visual tokens that show objects, mean"),
            "entropy": Column(FLOAT, "entropy of the attention within the image over that of equal attention, 0 to 1"),
            "n": N,
        },
        ("checkpoint", "layer", "target", "tier", "family"),
    ),
    "attention_maps": Table(
        {
            "checkpoint": CHECKPOINT,
            "question_id": Column(STRING, "question whose attention is kept"),
            "number": Column(INT, "its place among the questions asked, from 0"),
            "question": Column(STRING, "its text"),
            "answer": Column(STRING, "its right answer"),
            "layer": Column(INT, "decoder layer"),
            "target": Column(STRING, "question or last"),
            "row": Column(INT, "row of the visual token on its tile, from the top"),
            "column": Column(INT, "column of the visual token"),
            "tile": Column(INT, "tile of the image"),
            "weight": Column(
                FLOAT, "share of the attention to the image that this token gets; sums to 1 without class tokens"
            ),
        },
        ("checkpoint", "question_id", "layer", "target", "tile", "row", "column"),
    ),
    "lens": Table(
        {
            "checkpoint": CHECKPOINT,
            "lens": Column(STRING, "logit, or tuned: an affine map a layer, fitted on other images"),
            "place": Column(
                STRING, "what is read: last (token), text (the question), vision, and of it object and background"
            ),
            "layer": Column(INT, "point of the residual stream that is read: 0 before the first layer, L the output"),
            "tier": Column(STRING, "low or high"),
            "family": Column(STRING, "question family, or `all` of the tier"),
            "probability": Column(FLOAT, "probability of the right answer among its choices, mean over tokens"),
            "above": Column(FLOAT, "share of tokens at which the right answer is above all its rivals at this point"),
            "ci_low": LOW,
            "ci_high": HIGH,
            "settled": Column(FLOAT, "share of questions where it is so from this point on (of most of their tokens)"),
            "n": N,
        },
        ("checkpoint", "lens", "place", "layer", "tier", "family"),
    ),
    "lens_layers": Table(
        {
            "checkpoint": CHECKPOINT,
            "lens": Column(STRING, "logit or tuned, of the prompt's last token"),
            "tier": Column(STRING, "low or high"),
            "family": Column(STRING, "question family, or `all` of the tier"),
            "first": Column(FLOAT, "point at which the right answer first stands above its rivals, median; else null"),
            "first_quarter": Column(FLOAT, "lower quartile of that point"),
            "first_three_quarters": Column(FLOAT, "upper quartile of that point"),
            "for_good": Column(
                FLOAT, "point from which it stays above them to the output, median of those answered right"
            ),
            "never_share": Column(FLOAT, "share of questions whose right answer is above its rivals at no point"),
            "right_share": Column(FLOAT, "share of questions whose right answer is above its rivals at the output"),
            "n": N,
        },
        ("checkpoint", "lens", "tier", "family"),
    ),
}
