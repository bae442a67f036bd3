"""The built-in selection methods, each with its source and the differences from it.

V visual tokens, D width, K kept, T tokens of the question. Operations are those of the selection alone.
"""

from __future__ import annotations

from orchestrator.ablate.selectors.kinds import Selector, Sizes

_HERE = "orchestrator.ablate.selectors"
EARLY = 1 / 16
"""Depth of methods that read an early layer: 2 of 32."""


def _leverage(s: Sizes) -> float:
    # Gram matrix of the smaller side and its eigenvectors (Golub and Van Loan 2013, section 8.3)
    side = min(s.v, s.d)
    return 2.0 * s.v * s.d * side + 9.0 * side**3


def _tome(s: Sizes) -> float:
    total, v = 2.0 * s.v * s.d, s.v
    while v > s.n:
        total += 2.0 * (v / 2) ** 2 * s.d
        v -= max(1, min(v - s.n, v // 2))
    return total


ENTRIES: tuple[Selector, ...] = (
    Selector(
        "random",
        "a uniform draw, by seed and question",
        "control",
        f"{_HERE}.states:random_order",
        draws=True,
        cost="none",
    ),
    Selector(
        "norm",
        "the largest norms",
        "control",
        f"{_HERE}.states:norm",
        operations=lambda s: 2.0 * s.v * s.d,
        cost="2 V D",
    ),
    Selector(
        "similarity",
        "the smallest mean cosine with the image's other tokens",
        "control",
        f"{_HERE}.states:similarity",
        operations=lambda s: 6.0 * s.v * s.d,
        cost="6 V D",
    ),
    Selector(
        "leverage",
        "the largest leverage in the top singular subspace",
        "Mahoney and Drineas 2009, PNAS 106:697 (leverage scores of rows)",
        f"{_HERE}.states:leverage",
        settings={"rank": 5},
        operations=_leverage,
        cost="a Gram matrix and its eigenvectors",
    ),
    Selector(
        "divprune",
        "the subset whose nearest two tokens lie farthest apart in cosine distance, greedily",
        "DivPrune, Alvar et al., CVPR 2025",
        f"{_HERE}.states:divprune",
        operations=lambda s: 2.0 * s.v * s.v * s.d + 2.0 * s.n * s.v,
        cost="2 V² D + 2 K V",
    ),
    Selector(
        "question_attention",
        "what the question's tokens attend to most, mean over them; before the decoder over all layers of a pass of"
        " its own",
        "this project; not FastV, which reads the last token alone",
        f"{_HERE}.attention:question_attention",
        frozenset({"full_pass"}),
        depths=(EARLY,),
        operations=lambda s: 2.0 * s.t * s.v * s.d,
        cost="2 T V D; before the decoder, a whole pass",
    ),
    Selector(
        "fastv",
        "what the last token of the prompt attends to most in the layer before",
        "FastV, Chen et al., ECCV 2024 (layer 2 of 32)",
        f"{_HERE}.attention:fastv",
        frozenset({"attention"}),
        depths=(EARLY,),
        operations=lambda s: 2.0 * s.v * s.d,
        cost="2 V D",
    ),
    Selector(
        "debiased_attention",
        "the same attention divided by its exponential trend over position",
        "Zhao et al. 2025, arXiv 2508.17807; the trend is fitted to the image's own tokens here, to many images there",
        f"{_HERE}.attention:debiased_attention",
        frozenset({"attention"}),
        depths=(EARLY,),
        operations=lambda s: 2.0 * s.v * s.d + 8.0 * s.v,
        cost="2 V D",
    ),
    Selector(
        "pyramiddrop",
        "what the last token attends to most in the layer itself, a constant multiple fewer after each quarter",
        "PyramidDrop, Xing et al., CVPR 2025",
        f"{_HERE}.attention:fastv",
        frozenset({"own_attention"}),
        depths=(0.25, 0.5, 0.75),
        profile="geometric",
        operations=lambda s: 2.0 * s.v * s.d,
        cost="2 V D, and queries and keys of each quarter's layer a second time",
    ),
    Selector(
        "sparsevlm",
        "what those question tokens attend to most that are most like the image, fewer after each of three layers",
        "SparseVLM, Zhang et al., ICML 2025 (layers 2, 6, 15 of 32); raters are found from the states at each depth"
        " here, from the embeddings there; without recycling of deleted tokens, and with given budgets",
        f"{_HERE}.attention:sparsevlm",
        frozenset({"attention", "text"}),
        depths=(3 / 32, 7 / 32, 16 / 32),
        profile=(300.0, 200.0, 110.0),
        operations=lambda s: 4.0 * s.t * s.v * s.d,
        cost="4 T V D",
    ),
    Selector(
        "dart",
        "the tokens least like a few pivots, which have the largest keys",
        "DART, Wen et al., EMNLP 2025 (layer 2 of 32; 4 + 4 pivots); cosines are of raw states here, of normed ones"
        " there, and the budget is kept exactly",
        f"{_HERE}.attention:dart",
        frozenset({"attention", "keys"}),
        depths=(EARLY,),
        settings={"image_pivots": 4, "text_pivots": 4},
        operations=lambda s: 16.0 * s.v * s.d,
        cost="2 V D a pivot",
    ),
    Selector(
        "fastervlm",
        "what the encoder's class token attends to most; without one, the most attended patches",
        "FasterVLM, Zhang et al. 2024, arXiv 2412.01818",
        f"{_HERE}.encoder:fastervlm",
        frozenset({"encoder"}),
        operations=lambda s: 2.0 * s.v * s.d,
        cost="2 V D; 2 V² D without a class token",
    ),
    Selector(
        "visionzip",
        "as `fastervlm`, and a few evenly spaced others into which the rest is merged by likeness of keys",
        "VisionZip, Yang et al., CVPR 2025 (54 + 10 of 64); merged after the projector here, before it there",
        f"{_HERE}.encoder:visionzip",
        frozenset({"encoder"}),
        settings={"contextual_share": 10 / 64},
        merges=True,
        operations=lambda s: 2.0 * s.v * s.d + 2.0 * (s.v - s.n) * max(1, s.n // 6) * s.d + 2.0 * s.v * s.d,
        cost="2 V D and 2 (V - K) K / 6 D; 2 V² D more without a class token",
    ),
    Selector(
        "prumerge",
        "as `fastervlm`, each with its nearest others added by their attention, and one for all that is deleted",
        "LLaVA-PruMerge, Shang et al., ICCV 2025 (32 of 576 neighbours); with a given budget, and merged after the"
        " projector here, before it there",
        f"{_HERE}.encoder:prumerge",
        frozenset({"encoder_last"}),
        settings={"neighbours_share": 32 / 576},
        merges=True,
        operations=lambda s: 2.0 * s.v * s.d + 2.0 * s.n * s.v * s.d + 2.0 * s.n * s.v / 18 * s.d,
        cost="2 K V D",
    ),
    Selector(
        "tome",
        "means of the most alike pairs, matched between every second token and the others until K are left",
        "ToMe, Bolya et al., ICLR 2023; on projected tokens here, in each block of the encoder there, and without"
        " attention weighted by size",
        f"{_HERE}.states:tome",
        merges=True,
        operations=_tome,
        cost="V² D / 2 a halving",
    ),
)

DOWNSAMPLE = "downsample"
"""The rival that needs no access to the model; no `Selector`, as it changes the image and not the tokens."""
