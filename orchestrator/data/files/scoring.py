"""Scoring of answers by each benchmark's rule: normalisation, score, and summary of a set.

| rule | an answer scores | source |
|---|---|---|
| exact | 1 if it equals a right answer after `normalise` | - |
| gqa | 1 if it equals the answer, letter case, outer spaces and a final period aside | GQA's eval.py |
| yes_no | 1 if the yes or no read from its first sentence is right | POPE's evaluate.py |
| vqa | mean over the annotators of min(1, agreeing others / 3) | VQA's vqaEval.py |
| textvqa | the same, with both sides normalised whether annotators differ or not | TextVQA's m4c_evaluators.py |
| box | 1 if its box overlaps the right one with IoU >= 0.5 | Yu et al. 2016 |
| point | 1 within 0.05 of the right point, in shares of width and height | - |
| none | not scored: a prompt | - |
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from orchestrator.errors import ConfigError, did_you_mean

RULES = ("exact", "gqa", "yes_no", "vqa", "textvqa", "box", "point", "none")
SOFT = ("vqa", "textvqa")
"""Rules with scores between 0 and 1."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Letters of listed choices."""
BOX_OVERLAP = 0.5
"""Minimum intersection over union of a correct box."""
POINT_TOLERANCE = 0.05
"""Maximum distance of a correct point, in shares of the image."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(n) for n, word in enumerate(_NUMBERS)}}
_ARTICLES = ("a", "an", "the")
_CONTRACTIONS = re.findall(
    r"\S+",
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "i'm i've isn't it'd it'll let's ma'am might've must've mustn't needn't not've o'clock oughtn't shan't she'd "
    "should've shouldn't somebody's someone's something's that'd that's there'd there're there's they'd they'll "
    "they're they've wasn't we'd we've weren't what'll what're what's what've when's where'd where's where've "
    "who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've",
)
_WITH_APOSTROPHE = {word.replace("'", ""): word for word in _CONTRACTIONS}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def vqa_normalise(text: str) -> str:
    """VQA's normalisation: punctuation, digits for number words, no articles, contractions with their apostrophe.

    >>> vqa_normalise("The two dogs, dont!")
    "2 dogs don't"
    """
    cleaned = text
    grouped = re.search(r"\d,\d", text) is not None
    for sign in _PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        cleaned = cleaned.replace(sign, "" if beside_space or grouped else " ")
    cleaned = re.sub(r"(?<!\d)\.(?!\d)|\.(?!\d)", "", cleaned)
    words = [_DIGITS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(_WITH_APOSTROPHE.get(word, word) for word in words if word not in _ARTICLES)


def textvqa_normalise(text: str) -> str:
    """TextVQA's normalisation: lower case without commas and question marks, `'s` apart, then VQA's.

    >>> textvqa_normalise("Nokia's?")
    "nokia 's"
    """
    return vqa_normalise(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def vqa_score(predicted: str, answers: Sequence[str], *, textvqa: bool = False) -> float:
    """VQA's soft accuracy: mean over annotators of min(1, agreeing others / 3).

    Answers are normalised only if annotators differ, as in VQA's official script; always with `textvqa`.
    """
    clean = [re.sub(r"[\n\t]", " ", answer).strip() for answer in (predicted, *answers)]
    if textvqa:
        clean = [textvqa_normalise(answer) for answer in clean]
    elif len(set(clean[1:])) > 1:
        clean = [vqa_normalise(answer) for answer in clean]
    prediction, expected = clean[0], clean[1:]
    agreeing = sum(answer == prediction for answer in expected)
    return float(np.mean([min(1.0, (agreeing - (answer == prediction)) / 3) for answer in expected]))


def yes_or_no(text: str) -> str:
    """POPE's rule: `no` if the first sentence contains the word no or not, else `yes`."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in ("No", "not", "no") for word in words) else "yes"


def normalise(text: str) -> str:
    """Lower case, one space, no closing punctuation, no article in front, digits for number words."""
    words = re.sub(r"\s+", " ", text.strip().lower()).strip(" .!?\"'").split(" ")
    if len(words) > 1 and words[0] in _ARTICLES:
        words = words[1:]
    return " ".join(_DIGITS.get(word, word) if word != "none" else word for word in words)


def check_rule(rule: str) -> None:
    """Raise ConfigError for an unknown rule."""
    if rule not in RULES:
        raise ConfigError(f"scoring: no rule {rule!r}.{did_you_mean(rule, RULES)}")


def choice_of(text: str, choices: Sequence[str]) -> str:
    """The choice that an answer names, by its letter (`B`, `(b)`, `B. cat`) or its text; the answer itself if none."""
    plain = normalise(text)
    for choice in choices:
        if normalise(choice) == plain:
            return choice
    letter = re.match(r"^\s*(?:answer\s*:?\s*)?\(?([A-Za-z])(?:[).:]|\s*$)", text, flags=re.IGNORECASE)
    place = ord(letter.group(1).upper()) - ord("A") if letter else len(choices)
    return choices[place] if place < len(choices) else text


def shuffled_choices(choices: Sequence[str], seed: int, number: int) -> list[str]:
    """Choices in a random order for question `number`, so that a position preference is measurable as a bias."""
    order = np.random.default_rng([seed, number]).permutation(len(choices))
    return [choices[i] for i in order]


def position_bias(picked: Sequence[int], n_choices: int) -> float:
    """Total variation distance of the chosen positions from uniform: 0 for no bias, (n - 1) / n for a single
    position."""
    shares = np.bincount(np.asarray(picked, dtype=int), minlength=n_choices) / max(1, len(picked))
    return float(np.abs(shares - 1 / n_choices).sum() / 2)


def listed_place(text: str, options: Sequence[str]) -> int | None:
    """Index of the option that an answer names by letter or text; None if it names none."""
    named = choice_of(text, options)
    return list(options).index(named) if named in options else None


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = sum(max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)) - shared
    return shared / union if union > 0 else 0.0


def read_numbers(text: str, n: int) -> tuple[float, ...] | None:
    """The n numbers of an answer; None if it does not have exactly n."""
    numbers = re.findall(r"\d+(?:\.\d+)?", text)
    return tuple(map(float, numbers)) if len(numbers) == n else None


def score(rule: str, predicted: str, answers: Sequence[str], choices: Sequence[str] | None = None) -> float:
    """Score of one answer, 0 to 1. For `box` and `point` both sides are numbers in hundredths of the image.

    Raises:
        ConfigError: an unknown rule.
    """
    check_rule(rule)
    if rule == "none" or not answers:
        return 0.0
    if rule in SOFT:
        return vqa_score(predicted, answers, textvqa=rule == "textvqa")
    if rule == "yes_no":
        return float(yes_or_no(predicted) == answers[0])
    if rule == "gqa":
        return float(predicted.strip().rstrip(".").lower() == answers[0].strip().lower())
    if rule == "box":
        predicted_numbers, true_numbers = read_numbers(predicted, 4), read_numbers(answers[0], 4)
        return float(
            predicted_numbers is not None
            and true_numbers is not None
            and overlap(predicted_numbers, true_numbers) >= BOX_OVERLAP
        )
    if rule == "point":
        predicted_numbers, true_numbers = read_numbers(predicted, 2), read_numbers(answers[0], 2)
        near = (
            predicted_numbers is not None
            and true_numbers is not None
            and math.dist(predicted_numbers, true_numbers) <= 100 * POINT_TOLERANCE
        )
        return float(near)
    named = choice_of(predicted, choices) if choices else predicted
    return float(normalise(named) in {normalise(right_answer) for right_answer in answers})


def yes_no_summary(predicted: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """POPE's figures: accuracy, precision, recall and F1 of `yes`, and the share of `yes`."""
    says_yes = np.array([yes_or_no(answer) == "yes" for answer in predicted])
    right = np.array([answer == "yes" for answer in answers])
    hits = float((says_yes & right).sum())
    precision = hits / says_yes.sum() if says_yes.any() else 0.0
    recall = hits / right.sum() if right.any() else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    figures = {"accuracy": (says_yes == right).mean(), "precision": precision, "recall": recall, "f1": f1}
    return {key: float(value) for key, value in figures.items()} | {"yes_share": float(says_yes.mean())}
