"""Declarations of the built-in compression metrics. Importing this module does not import torch.

`N` is the number of tokens of one image, group and layer; `d` their width; `h_n` token n, `a_n` its norm,
`e_n = a_n^2` its energy, `sigma_i` the singular values of the N x d matrix of tokens.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.compression.declaration import Invariance, Metric

MASSIVE_RATIO = 10.0
"""A token is massive when its norm exceeds this multiple of the median token norm of its image, group and layer.

Sun et al. 2024 ("Massive Activations in Large Language Models") call an activation massive when it is about 1,000 times
the median magnitude of its hidden state. One such activation among d Gaussian ones gives its token 1000 / (1.48 sqrt d)
times the usual norm: 11 times at d = 4096. The rule in norms is scale-free and free of cost, as norms are computed
anyway."""

_ALL: frozenset[Invariance] = frozenset(("rotation", "scale", "permutation", "duplication"))
_NO_DUPLICATION = _ALL - {"duplication"}
_NORM_COST = "O(N d) for the norms, shared; then O(N log N)"
_GRAM_COST = "one Gram matrix on the smaller side, shared by all variants, and 12 products with 8 columns"
_SPECTRUM_COST = "all eigenvalues of a Gram matrix for each variant: as much as the forward pass itself at N = 700"
_ESTIMATE_COST = "products of a Gram matrix with 64 columns, then 24 times with 16: on a GPU a tenth of all eigenvalues"

BASES: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "gini",
            "norm",
            "Gini coefficient of token norms",
            "sum_i (2 i - N - 1) a_(i) / (N sum a), a_(1) <= ... <= a_(N)",
            "[0, 1 - 1/N]",
            +1,
            "Gini 1912; as a sparsity measure: Hurley and Rickard 2009, IEEE Trans. Inf. Theory 55(10)",
            _NORM_COST,
            "It compares norms only: tokens of equal norm score 0 even if they are all identical.",
            "a few tokens carry nearly all the norm",
            "every token has the same norm",
            _ALL,
        ),
        Metric(
            "participation_ratio",
            "norm",
            "Participation ratio of token energy",
            "(sum e)^2 / sum e^2",
            "[1, N]",
            -1,
            "Bell and Dean 1970, Discuss. Faraday Soc. 50; inverse of Simpson's 1949 concentration index",
            _NORM_COST,
            "It grows with N: images with more visual tokens look less compressed. Use the share to compare them.",
            "many tokens share the energy",
            "one token holds it",
            _NO_DUPLICATION,
        ),
        Metric(
            "participation_ratio_share",
            "norm",
            "Participation ratio over N",
            "(sum e)^2 / (N sum e^2)",
            "[1/N, 1]",
            -1,
            "as participation_ratio; also Treves and Rolls 1991 (sparseness), Network 2(4)",
            _NORM_COST,
            "Squared energies are dominated by the largest token: one massive token hides the distribution of "
            "the rest.",
            "all tokens hold equal energy",
            "one token of many holds it",
            _ALL,
        ),
        Metric(
            "norm_entropy",
            "norm",
            "Effective share of tokens by entropy of energy",
            "exp(-sum p log p) / N, p = e / sum e",
            "[1/N, 1]",
            -1,
            "Shannon 1948; exponential as effective number: Hill 1973, Ecology 54(2)",
            _NORM_COST,
            "Less dominated by the largest token than the participation ratio, but also independent of token "
            "directions.",
            "all tokens hold equal energy",
            "one token of many holds it",
            _ALL,
        ),
        Metric(
            "hoyer",
            "norm",
            "Hoyer sparsity of token norms",
            "(sqrt N - |a|_1 / |a|_2) / (sqrt N - 1)",
            "[0, 1]",
            +1,
            "Hoyer 2004, JMLR 5",
            _NORM_COST,
            "Undefined for one token (NaN), and for the same shape it rises with N.",
            "one token holds all",
            "every token has the same norm",
            _NO_DUPLICATION,
        ),
        Metric(
            "tokens_90",
            "norm",
            "Share of tokens that hold 90 % of the energy",
            "min {k : e_(1) + ... + e_(k) >= 0.9 sum e} / N, e_(1) >= e_(2) >= ...",
            "[1/N, 1]",
            -1,
            "cumulative-energy rule: Jolliffe 2002, Principal Component Analysis, section 6.1.1, on tokens",
            _NORM_COST,
            "A step function in units of 1/N: with few tokens, small changes have no effect or jump.",
            "nearly all tokens are needed (0.9 when all are equal)",
            "few tokens are enough",
            _NO_DUPLICATION,
        ),
        Metric(
            "stable_rank",
            "spectrum",
            "Stable rank",
            "|H|_F^2 / sigma_1^2",
            "[1, min(N, d)]",
            -1,
            "Rudelson and Vershynin 2007, J. ACM 54(4)",
            _GRAM_COST,
            "Raw, it mostly measures the mean token: one massive dimension brings it to 1. Read it together "
            "with `_centred`.",
            "energy in many directions",
            "one direction holds it",
            _ALL,
            needs="gram",
        ),
        Metric(
            "effective_rank",
            "spectrum",
            "Effective rank by entropy of singular values",
            "exp(-sum p log p), p = sigma / sum sigma",
            "[1, min(N, d)]",
            -1,
            "Roy and Vetterli 2007, EUSIPCO",
            _SPECTRUM_COST,
            "It counts small noisy directions too (sigma, not sigma^2), and is bounded by N: few tokens, low rank.",
            "singular values alike",
            "one direction holds all",
            _ALL,
            needs="spectrum",
        ),
        Metric(
            "spectral_participation",
            "spectrum",
            "Participation ratio of the spectrum",
            "(sum sigma^2)^2 / sum sigma^4",
            "[1, min(N, d)]",
            -1,
            "Gao et al. 2017, bioRxiv 214262 (dimensionality of neural activity)",
            _GRAM_COST,
            "Dominated by the first few directions; it is insensitive to a long tail of small ones.",
            "energy in many directions",
            "one direction holds it",
            _ALL,
            needs="gram",
        ),
        Metric(
            "rank_90",
            "spectrum",
            "Components for 90 % of the energy",
            "min {k : sigma_1^2 + ... + sigma_k^2 >= 0.9 sum sigma^2}",
            "{1, ..., min(N, d)}",
            -1,
            "Jolliffe 2002, Principal Component Analysis, section 6.1.1",
            _SPECTRUM_COST,
            "An integer: 1 for nearly every raw state with a large mean token.",
            "many components are needed",
            "one component is enough",
            _ALL,
            needs="spectrum",
        ),
        Metric(
            "mean_cosine",
            "similarity",
            "Mean pairwise cosine of tokens",
            "mean over pairs m != n of h_m . h_n / (a_m a_n); tokens of zero norm are left out",
            "[-1, 1]",
            +1,
            "Ethayarajh 2019, EMNLP (anisotropy)",
            "O(N d): the norm of the sum of unit tokens, no pairs",
            "Raw, a mean that all tokens share gives 1 though the rest differs; centred it is near -1/(N - 1) "
            "by construction"
            " and measures how unevenly tokens are distributed around their mean.",
            "all tokens have the same direction",
            "token directions are spread evenly",
            _NO_DUPLICATION,
        ),
    )
}

MASSIVE_SHARE = Metric(
    "massive_share",
    "norm",
    "Share of tokens that are massive",
    f"|{{n : a_n > {MASSIVE_RATIO:g} median(a)}}| / N",
    "[0, 1/2]",
    +1,
    "Sun et al. 2024, COLM (Massive Activations in Large Language Models), in norms",
    _NORM_COST,
    "The share of tokens that `_trimmed` leaves out; 0 for most images, and then `_trimmed` equals the plain value.",
    "some tokens have outlying norms",
    "no token does",
    _ALL,
    base="massive_share",
)

_ESTIMATED = (
    " An estimate: read it with its standard error (`_se`), which is large if few directions hold nearly all energy."
)
ESTIMATES: dict[str, Metric] = {}
"""Estimates of metrics of the full spectrum, under separate names, each with a column for its standard error."""
for _base, _unit in (("effective_rank", "directions"), ("rank_90", "components")):
    ESTIMATES[f"{_base}_estimate"] = replace(
        BASES[_base],
        name=f"{_base}_estimate",
        title=f"{BASES[_base].title}, estimated",
        source="stochastic Lanczos quadrature: Ubaru, Chen and Saad 2017, SIAM J. Matrix Anal. Appl. 38(4)",
        cost=_ESTIMATE_COST,
        misleads=BASES[_base].misleads + _ESTIMATED,
        needs="estimate",
    )
    ESTIMATES[f"{_base}_estimate_se"] = Metric(
        f"{_base}_estimate_se",
        "spectrum",
        f"Standard error of the estimated {_base}",
        f"standard error of {_base}_estimate, from its probes and from rounding",
        "[0, inf)",
        0,
        f"as {_base}_estimate",
        "with the estimate",
        "The error of this image's estimate only; it does not include the variation over images.",
        f"the estimate may be off by many {_unit}",
        "the estimate is nearly exact",
        frozenset(),
        needs="estimate",
    )

_ALIGNMENT = Metric(
    "top5_alignment_text",
    "alignment",
    "Top-5 subspace alignment of vision with text",
    "|V_vision^T V_text|_F^2 / 5, V the right singular vectors of the 5 largest sigma",
    "[0, 1]",
    0,
    "mean squared cosine of principal angles: Bjoerck and Golub 1973; Krzanowski 1979, JASA 74(367)",
    _GRAM_COST,
    "Two random subspaces have 5 / d, not 0. A mean that both share is one direction of five and contributes 0.2. A"
    " side of fewer than five tokens has fewer directions, and their number replaces 5.",
    "both span the same few directions",
    "they share no direction",
    frozenset(("scale", "permutation", "duplication")),
)
_NEXT = replace(
    _ALIGNMENT,
    name="top5_alignment_next",
    title="Top-5 subspace alignment with the next layer",
    formula="|V_l^T V_(l+1)|_F^2 / 5, V the right singular vectors of the 5 largest sigma",
    misleads=_ALIGNMENT.misleads
    + " l + 1 is the tap's next layer captured: where layers are skipped, it is the change over all between.",
    high="the layer keeps the leading directions",
    low="the layer changes the leading directions",
)
_CHANCE = replace(
    _ALIGNMENT,
    name="top5_alignment_chance",
    title="Chance level of the top-5 alignment of vision with text",
    formula="5 / d: mean of |V^T W|_F^2 / 5 over independent random subspaces of five directions",
    cost="nothing",
    misleads="For directions drawn uniformly in d dimensions. Tokens of one model share a smaller space, so "
    "that unrelated ones"
    " align somewhat above it; shuffled images are the stricter comparison.",
    high="few dimensions: random alignment is high",
    low="many dimensions",
)
ALIGNMENT_BASES: dict[str, Metric] = {
    m.name: replace(m, base=m.name, needs="gram") for m in (_ALIGNMENT, _NEXT, _CHANCE)
}
"""Columns that compare two sets of tokens. They measure what is shared, not how compressed either is: direction 0."""
