"""Accuracy of a reference checkpoint on held-out scenes, by question family, along the path of any hub model.

The folder is loaded by the Auto classes, a prompt goes through the chat template and the processor, and the answer
comes from plain greedy ``generate``. An answer counts only if it equals the true one word for word.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from orchestrator.config import ScenesConfig
from orchestrator.data.examples import make_example
from orchestrator.data.questions import HIGH_OBJECTS, LOW_OBJECTS, parse_point
from orchestrator.data.render import render
from orchestrator.reference.packing import LOGGED
from orchestrator.stats.intervals import wilson

HELD_OUT_SEED = 90_001
"""Seed of held-out examples; training scenes have seed 1."""

SIZES = (0.08, 0.22)
"""Object diameters of held-out scenes, as fractions of the canvas side, in both tiers."""
CLOSED = ("colour", "shape", "existence", "count", "count_by_attribute", "comparison", "relation")
"""Families with a closed set of answers."""
SETS: dict[str, tuple[str, tuple[int, int]]] = {
    **{family: (family, LOW_OBJECTS) for family in (*CLOSED, "point", "caption")},
    **{f"{family}, crowded": (family, HIGH_OBJECTS) for family in (*CLOSED, "point", "caption")},
}
"""Name of a row -> family, and range of the number of objects (drawn uniformly)."""


@dataclass(frozen=True)
class Row:
    """Accuracy on one set of questions."""

    name: str
    n: int
    accuracy: float
    low: float
    """Lower end of the 95 % Wilson interval."""
    high: float
    """Upper end."""
    chance: float
    """Share of the most frequent true answer: accuracy of a blind model that always gives it."""
    error: float | None = None
    """Points only: mean distance of predicted and true centres, in hundredths of the canvas."""
    unreadable: float | None = None
    """Points only: share of answers that are neither point nor box; excluded from the error."""


def held_out(name: str, n: int, sizes: tuple[float, float] = SIZES) -> list[tuple[np.ndarray, str, str]]:
    """Draw n held-out questions of a set, one per scene: (image uint8 (H, W, 3), question, answer).

    The answer is drawn before the scene, so that answers are balanced; groups to count or compare have the sizes of
    simple scenes, in crowded scenes too.
    """
    family, n_objects = SETS[name]
    config = ScenesConfig(n_objects=n_objects, n_objects_spacing="uniform", size=sizes)
    drawn = []
    for index in range(n):
        scene, q = make_example(config, family, None, HELD_OUT_SEED, index, room=LOW_OBJECTS[1])
        drawn.append((render(scene), q.text, q.answer))
    return drawn


def point_errors(predicted: Sequence[str], true: Sequence[str]) -> tuple[float, float]:
    """Mean distance of centres in hundredths, and the share of answers that are not the requested point or box."""
    errors = []
    for pair in zip(predicted, true, strict=True):
        places = [parse_point(text) for text in pair]
        if places[0] is not None and places[1] is not None and len(places[0]) == len(places[1]):
            centres = [np.array(place).reshape(-1, 2).mean(0) for place in places if place]
            errors.append(float(np.linalg.norm(centres[0] - centres[1])))
    return float(np.mean(errors)) if errors else float("nan"), 1 - len(errors) / len(true)


def answers(
    model: Any, processor: Any, questions: Sequence[tuple[np.ndarray, str, str]], batch_size: int = 50
) -> list[str]:
    """Answer questions by greedy generation, in batches."""
    replies: list[str] = []
    for start in range(0, len(questions), batch_size):
        part = questions[start : start + batch_size]
        prompts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
                add_generation_prompt=True,
            )
            for _, question, _ in part
        ]
        images = [[Image.fromarray(image)] for image, _, _ in part]
        inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        replies += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return replies


def evaluate(
    folder: Path, n: int = 500, names: Sequence[str] = tuple(SETS), sizes: tuple[float, float] = SIZES
) -> list[Row]:
    """Evaluate a checkpoint folder on n held-out questions of each named set."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    rows = []
    for name in names:
        questions = held_out(name, n, sizes)
        truth = [answer for _, _, answer in questions]
        replies = answers(model, processor, questions)
        right = sum(a == b for a, b in zip(replies, truth, strict=True))
        low, high = wilson(right, n)
        chance = Counter(truth).most_common(1)[0][1] / n
        error, unreadable = point_errors(replies, truth) if SETS[name][0] == "point" else (None, None)
        rows.append(Row(name, n, right / n, low, high, chance, error, unreadable))
    return rows


def draw_curves(curves: Sequence[Path], png: Path) -> None:
    """Plot training curves from the runs' work folders: accuracy by family."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(curves), figsize=(7 * len(curves), 7), sharex="col", squeeze=False)
    for (shares, errors), path in zip(axes.T, curves, strict=True):
        points = [p for p in map(json.loads, path.read_text().splitlines()) if p["phase"] == "answers"]
        for number, name in enumerate(LOGGED):
            logged = [p for p in points if name in p]
            label = name.replace("_", " ")
            shares.plot(
                [p["step"] for p in logged],
                [p[name] for p in logged],
                label=label,
                lw=1.2,
                color=f"C{number % 10}",
                ls="--" if number >= 10 else "-",
            )
        for name, label in (
            ("word_place_error", "place of a named object"),
            ("place_error", "place of a patch's object"),
        ):
            logged = [p for p in points if name in p]
            errors.plot([p["step"] for p in logged], [p[name] for p in logged], label=label, lw=1.2)
        shares.set(title=path.stem.removesuffix("-curve"), ylabel="share of questions right", ylim=(0, 1.02))
        errors.set(xlabel="step", ylabel="mean error, hundredths", yscale="log")
        for axis in (shares, errors):
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(png, dpi=100)


def main() -> None:
    """Evaluate the folder named on the command line and print a Markdown table, or draw training curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="checkpoint folder to evaluate")
    parser.add_argument("--curves", type=Path, nargs="*", default=[], help="*-curve.jsonl of runs to draw instead")
    parser.add_argument("--png", type=Path, default=Path("docs/img/reference_training.png"))
    parser.add_argument("-n", type=int, default=500, help="questions a row")
    parser.add_argument("--sizes", type=float, nargs=2, default=SIZES, help="object diameters / canvas side")
    parser.add_argument("--rows", nargs="*", default=list(SETS))
    args = parser.parse_args()
    if args.curves:
        draw_curves(args.curves, args.png)
        return
    if args.folder is None:
        parser.error("a checkpoint folder or --curves is needed")
    rows = evaluate(args.folder, args.n, args.rows, tuple(args.sizes))
    print("| questions | accuracy | 95 % interval | chance | n | mean error |\n|---|---|---|---|---|---|")
    for row in rows:
        shares = (f"{100 * share:.1f} %" for share in (row.accuracy, row.low, row.high, row.chance))
        error = "" if row.error is None else f"{row.error:.1f}"
        print("| {} | {} | {} to {} | {} | {} | {} |".format(row.name, *shares, row.n, error))
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
