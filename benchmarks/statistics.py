"""Simulated size, coverage and power of every test, interval and verdict of `orchestrator/stats`.

    OMP_NUM_THREADS=1 python -m benchmarks.statistics            # some 15 minutes on one core
    OMP_NUM_THREADS=1 python -m benchmarks.statistics --quick    # seconds; too few draws for the figures

Data are drawn with a known truth: dependence on the number of objects alone through curves of several shapes, direct
effects, policies with known loss, questions clustered by image, answers of known frequencies. The last line is JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.common import header, last_line
from orchestrator.stats.blind import blind_level
from orchestrator.stats.conditional import conditional_association
from orchestrator.stats.intervals import clustered_share, student_interval
from orchestrator.stats.paired import paired_difference
from orchestrator.stats.power import paired_power
from orchestrator.stats.shape import monotonicity
from orchestrator.stats.sufficient import sufficient_ratio
from orchestrator.stats.verdict import family_verdicts, non_inferiority, verdict

SEED = 20_261_126
"""First part of every seed; the procedures were settled under others (0 to 7 alone)."""
SIZES = (60, 100, 400)
DESIGNS = ("1 to 200", "1 to 20", "levels", "design", "photographs")
SMALLEST = 0.2
CURVES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "hump": lambda u, _: 4 * u * (1 - u),
    "saturating": lambda _, count: 1.25 * count / (count + 10),
    "step": lambda u, _: (u > 0.55) * 1.0,
    "two steps": lambda u, _: (u > 0.3) * 1.0 - (u > 0.7) * 1.0,
    "early": lambda u, _: np.exp(-8 * u),
    "line": lambda u, _: u,
    "none": lambda u, _: 0 * u,
}


@dataclass(frozen=True)
class Draws:
    """How many data sets, and columns drawn on each one's counts (`Curves.of` keeps eight sets)."""

    sets: int
    columns: int

    @property
    def total(self) -> int:
        return self.sets * self.columns


def counts(rng: np.random.Generator, n: int, design: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of objects and their place (0 to 1).

    1 to 200 on a log scale, 1 to 20, eight levels, the five of the default design, or skewed as in photographs.
    """
    if design == "1 to 200":
        count = np.floor(np.exp(rng.uniform(0, np.log(201), n)))
    elif design == "levels":
        count = rng.choice([2.0, 4, 6, 8, 12, 16, 24, 32], n)
    elif design == "design":
        count = rng.permutation(np.resize([4.0, 8, 12, 20, 32], n))
    elif design == "photographs":
        count = 1.0 + rng.negative_binomial(1.0, 0.12, n)
    else:
        count = rng.integers(1, 21, n).astype(float)
    place = np.log(count) if design != "1 to 20" else count
    return count, (place - place.min()) / np.ptp(place)


def pairs_of_columns(
    draws: Draws, n: int, design: str, curve: str, noise: float, uneven: bool, effect: float, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(x, y, count): both follow the count by `curve`; their noise correlates by `effect`."""
    rng = np.random.default_rng([SEED, seed, n])
    for _ in range(draws.sets):
        count, u = counts(rng, n, design)
        spread = noise * (0.2 + 1.6 * u if uneven else np.ones(n))[:, None]
        x, own = rng.standard_normal((2, n, draws.columns))
        y = effect * x + np.sqrt(1 - effect**2) * own
        mean = CURVES[curve](u, count)[:, None]
        yield mean + spread * x, mean + spread * y, count


def conditional(draws: Draws) -> tuple[float, dict[str, float]]:
    """Largest share of false positives of the conditional test, and its power by n and effect."""
    worst = 0.0
    print("\nconditional association: positives at 5 % where both sides depend on the count alone")
    for n in SIZES:
        for design in DESIGNS:
            row = []
            for curve in CURVES:
                for noise in (0.05, 0.3):
                    for uneven in (False, True):
                        made = pairs_of_columns(draws, n, design, curve, noise, uneven, 0.0)
                        p = [np.diag(conditional_association(x, y, c[:, None]).p) for x, y, c in made]
                        row.append(float(np.nanmean(np.concatenate(p) < 0.05)))
            worst = max(worst, *row)
            print(f"  n {n:3d}, counts {design:11s}: largest {max(row):.3f}, mean {np.mean(row):.3f}")
    power = {}
    for n in SIZES:
        for effect in (0.2, 0.3, 0.5):
            made = pairs_of_columns(draws, n, "1 to 20", "hump", 0.3, False, effect, seed=1)
            p = np.concatenate([np.diag(conditional_association(x, y, c[:, None]).p) for x, y, c in made])
            power[f"{effect} at {n}"] = float(np.mean(p < 0.05))
    print("  power, direct correlation of the noise:", {k: round(v, 2) for k, v in power.items()})
    return worst, power


def verdicts(draws: Draws) -> tuple[float, float]:
    """Largest share of wrong verdicts (planted true, false, empty), and equivalence found of empty at n = 400."""
    worst, reached = 0.0, 0.0
    print("\nverdicts, smallest effect 0.2, alone and in a family of 20 (planted: correlation of the noise)")
    for n in SIZES:
        for planted, right in ((0.5, "supported"), (-0.5, "contradicted"), (0.0, "equivalent to nothing")):
            alone: list[str] = []
            family: list[str] = []
            for x, y, c in pairs_of_columns(draws, n, "1 to 20", "hump", 0.3, True, planted, seed=2):
                association = conditional_association(x, y, c[:, None])
                rho, low, high = (np.diag(part) for part in (association.rho, association.low, association.high))
                alone += [verdict(*row, SMALLEST) for row in zip(rho, low, high, strict=True)]
                for k in range(0, len(rho), 20):
                    part = slice(k, k + 20)
                    family += family_verdicts(rho[part], low[part], high[part], SMALLEST, bound=1.0)
            for verdicts_of, name in ((alone, "alone"), (family, "family")):
                wrong = float(np.mean([v not in (right, "undecided") for v in verdicts_of]))
                hit = float(np.mean([v == right for v in verdicts_of]))
                worst = max(worst, wrong)
                if name == "alone" and planted == 0 and n == 400:
                    reached = hit
                print(f"  n {n:3d}, planted {planted:+.1f}, {name:6s}: right {hit:.2f}, wrong {wrong:.3f}")
    return worst, reached


def shapes(draws: Draws) -> float:
    """Largest share of monotone relations called turning."""
    worst = 0.0
    print("\nmonotonicity: rejected at 5 %")
    monotone = {
        "flat": lambda u: 0 * u,
        "line": lambda u: u,
        "early plateau": lambda u: np.minimum(u, 0.1) * 10,
        "plateau": lambda u: np.minimum(u, 0.3) * 3,
        "step": lambda u: (u > 0.5) * 1.0,
    }
    turning = {"hump": lambda u: 4 * u * (1 - u), "late turn": lambda u: np.where(u < 0.75, u / 0.75, (1 - u) / 0.25)}
    for n in SIZES:
        row = {}
        for name, curve in {**monotone, **turning}.items():
            hits = []
            rng = np.random.default_rng([SEED, 3, n])
            for uneven in (False, True):
                for _ in range(max(1, draws.sets // 2)):
                    count, u = counts(rng, n, "1 to 200")
                    spread = 0.3 * (0.2 + 1.6 * u if uneven else np.ones(n))[:, None]
                    x = curve(u)[:, None] + spread * rng.standard_normal((n, draws.columns))
                    hits.append(monotonicity(x, count).p < 0.05)
            row[name] = round(float(np.mean(hits)), 3)
            worst = max(worst, row[name] if name in monotone else 0.0)
        print(f"  n {n:3d}: {row}")
    return worst


def policies(n_draws: int) -> tuple[float, float]:
    """Least coverage of the paired interval, and largest share of wrong non-inferiority verdicts at the margin."""
    least, wrong = 1.0, 0.0
    print("\npaired differences of shares (Tango), one question an image and four")
    rng = np.random.default_rng([SEED, 4])
    for n in (40, 80, 160, 400):
        for lost, gained in ((0.02, 0.0), (0.02, 0.01), (0.05, 0.03), (0.10, 0.05)):
            for per_image in (1, 4):
                clusters = np.arange(n) // per_image
                covered = over = 0
                for _ in range(n_draws):
                    tilt = rng.beta(0.5, 0.5, clusters.max() + 1)[clusters] * 2 if per_image > 1 else np.ones(n)
                    drawn = rng.random(n)
                    change = -(drawn < lost * tilt).astype(float) + (drawn > 1 - gained * tilt)
                    difference = paired_difference(change, np.zeros(n), clusters)
                    assert difference.low is not None
                    assert difference.high is not None
                    covered += difference.low <= gained - lost <= difference.high
                    over += non_inferiority(difference.low, difference.high, lost - gained) == "supported"
                least, wrong = min(least, covered / n_draws), max(wrong, over / n_draws)
                print(
                    f"  n {n:3d}, {per_image} an image, loses {lost:.2f} gains {gained:.2f}:"
                    f" coverage {covered / n_draws:.3f}, non-inferior at the margin {over / n_draws:.3f}"
                )
    return least, wrong


def clusters(n_draws: int) -> float:
    """Least coverage of shares right whose questions are clustered by image."""
    least = 1.0
    print("\nshares right, clustered by image")
    rng = np.random.default_rng([SEED, 5])
    for n_images, n in ((21, 100), (50, 100), (100, 400)):
        for a, b in ((1.5, 1.5), (4.0, 1.0), (0.5, 0.5)):
            covered = 0
            for _ in range(n_draws):
                image = rng.integers(n_images, size=n)
                right = rng.random(n) < rng.beta(a, b, n_images)[image]
                share = clustered_share(right, image)
                covered += share.low is not None and share.high is not None and share.low <= a / (a + b) <= share.high
            least = min(least, covered / n_draws)
            print(f"  {n} questions of {n_images} images, share {a / (a + b):.2f}: coverage {covered / n_draws:.3f}")
    return least


def blind(n_draws: int) -> float:
    """Largest bias of the blind level: with a reference at every n, cross-fitted from 100 questions on."""
    worst = 0.0
    print("\nblind level: bias against the best constant of the population")
    shares = ((0.5, 0.5), (0.25,) * 4, (0.6, 0.4), (0.4, 0.3, 0.3), (0.29, 0.24, 0.24, 0.23))
    for p in shares:
        for n in (24, 100):
            rng = np.random.default_rng([SEED, 16])
            bias: dict[str, list[float]] = {"reference": [], "cross-fitted": []}
            for _ in range(n_draws):
                answers = [str(v) for v in rng.choice(len(p), n, p=p)]
                others = [("g", str(v)) for v in rng.choice(len(p), 1000, p=p)]
                for name, known in (("reference", others), ("cross-fitted", None)):
                    bias[name].append(blind_level(answers, ["g"] * n, range(n), known).value - max(p))
            mean = {name: float(np.mean(values)) for name, values in bias.items()}
            worst = max(worst, abs(mean["reference"]), abs(mean["cross-fitted"]) if n >= 100 else 0.0)
            print(f"  {p}, n {n}: " + ", ".join(f"{name} {value:+.3f}" for name, value in mean.items()))
    return max(worst, blind_places(max(4, n_draws // 20)))


def blind_places(n_draws: int) -> float:
    """Largest bias of the blind level of places that are right within a distance of 5, from 100 questions on."""
    worst = 0.0

    def near(_: object, answer: str, reply: str) -> bool:
        (x, y), (u, v) = (map(int, place.split()) for place in (answer, reply))
        return (x - u) ** 2 + (y - v) ** 2 <= 25

    for name, spread in PLACES.items():
        rng = np.random.default_rng([SEED, 17])
        population = np.round(spread(rng, 200_000)).clip(0, 99).astype(int)
        filled = np.zeros((110, 110))
        np.add.at(filled, (population[:, 0] + 5, population[:, 1] + 5), 1 / len(population))
        at = [(i, j) for i in range(-5, 6) for j in range(-5, 6) if i * i + j * j <= 25]
        best = float(np.max(sum(filled[5 + i : 105 + i, 5 + j : 105 + j] for i, j in at)))
        for n in (24, 100):
            drawn = [np.round(spread(rng, n)).clip(0, 99).astype(int) for _ in range(n_draws)]
            levels = [
                blind_level([f"{x} {y}" for x, y in places], ["g"] * n, range(n), judge=near).value for places in drawn
            ]
            bias = float(np.mean(levels)) - best
            worst = max(worst, abs(bias) if n >= 100 else 0.0)
            print(f"  places {name}, n {n}: best constant {best:.3f}, cross-fitted {bias:+.3f}")
    return worst


PLACES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "anywhere": lambda rng, n: rng.uniform(10, 90, (n, 2)),
    "around the middle": lambda rng, n: 50 + 12 * rng.standard_normal((n, 2)),
    "in two heaps": lambda rng, n: np.where(rng.random((n, 1)) < 0.55, 30, 70) + 6 * rng.standard_normal((n, 2)),
    "in one heap": lambda rng, n: 50 + 4 * rng.standard_normal((n, 2)),
}
"""Where right places lie, in hundredths of the picture."""


def seeds(n_draws: int) -> dict[str, float]:
    """Coverage of Student's interval, false gains of the sufficient ratio, simulated against stated power."""
    rng = np.random.default_rng([SEED, 7])
    print("\neffects over seeds")
    covered, gains, power = {}, {}, {}
    for n in (3, 5, 10):
        draws = rng.standard_normal((n_draws, n))
        intervals = [student_interval(row) for row in draws]
        covered[n] = float(
            np.mean([f.low <= 0 <= f.high for f in intervals if f.low is not None and f.high is not None])
        )
        shifted = [student_interval(row + 1) for row in draws]
        power[n] = float(
            np.mean([f.low > 0 or f.high < 0 for f in shifted if f.low is not None and f.high is not None])
        )
        none = [
            sufficient_ratio({r: {s: rng.standard_normal() for s in range(n)} for r in (0.0, 0.25, 0.5, 0.75, 1.0)})
            for _ in range(n_draws)
        ]
        gains[n] = float(np.mean([bool(f.rises) for f in none]))
        print(
            f"  {n:2d} seeds: coverage {covered[n]:.3f}, a gain of five ratios without effect {gains[n]:.3f},"
            f" power at d = 1 {power[n]:.2f} (stated {paired_power(1.0, n):.2f})"
        )
    return {"seed_coverage_min": min(covered.values()), "ratio_false_gain_max": max(gains.values())}


def _conditional_figures(quick: bool) -> dict[str, float]:
    worst, power = conditional(Draws(2, 20) if quick else Draws(8, 150))
    return {"partial_false_positive_max": worst, "partial_power_0.3_at_100": power["0.3 at 100"]}


def _verdict_figures(quick: bool) -> dict[str, float]:
    wrong, reached = verdicts(Draws(2, 20) if quick else Draws(8, 100))
    return {"verdict_wrong_max": wrong, "equivalence_reached": reached}


def _shape_figures(quick: bool) -> dict[str, float]:
    return {"shape_false_positive_max": shapes(Draws(2, 20) if quick else Draws(8, 100))}


def _policy_figures(quick: bool) -> dict[str, float]:
    coverage, over = policies(60 if quick else 1000)
    return {"policy_coverage_min": coverage, "policy_wrong_at_margin_max": over}


PARTS: dict[str, Callable[[bool], dict[str, float]]] = {
    "conditional": _conditional_figures,
    "verdicts": _verdict_figures,
    "shapes": _shape_figures,
    "policies": _policy_figures,
    "clusters": lambda quick: {"cluster_coverage_min": clusters(60 if quick else 1000)},
    "blind": lambda quick: {"blind_bias_max": blind(20 if quick else 1000)},
    "seeds": lambda quick: seeds(60 if quick else 1000),
}


def main(quick: bool = False, parts: Sequence[str] = tuple(PARTS)) -> dict[str, float]:
    """Run simulations and return the figures of the last line."""
    header("python -m benchmarks.statistics" + " --quick" * quick)
    figures: dict[str, float] = {}
    for part in parts:
        figures |= PARTS[part](quick)
    return {name: round(value, 4) for name, value in figures.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few draws: shows that it runs")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="simulations to run")
    chosen = parser.parse_args()
    last_line(main(chosen.quick, chosen.parts))
