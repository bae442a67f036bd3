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
from scipy.stats import binomtest
from transformers import AutoModelForImageTextToText, AutoProcessor

from orchestrator.config import ScenesConfig
from orchestrator.data.questions import make_questions
from orchestrator.data.render import render
from orchestrator.data.scenes import make_scene

HELD_OUT_SEED = 90_001
"""Scene seed of held-out scenes; training scenes have seed 1."""

SIZES = (0.12, 0.34)
"""Object diameters of held-out scenes, as fractions of the canvas side."""

SETS: dict[str, tuple[str, tuple[int, int]]] = {
    "colour": ("colour", (1, 5)),
    "shape": ("shape", (1, 5)),
    "existence": ("existence", (1, 5)),
    "count 1 to 5": ("count", (1, 5)),
    "count 6 to 20": ("count", (6, 20)),
    "count by attribute": ("count_by_attribute", (2, 12)),
    "comparison": ("comparison", (3, 12)),
    "relation": ("relation", (2, 6)),
    "point": ("point", (2, 6)),
    "colour, crowded": ("colour", (7, 12)),
    "existence, crowded": ("existence", (10, 30)),
    "point, lone object": ("point", (1, 1)),
    "caption": ("caption", (2, 4)),
}
"""Name of a row -> family, and range of the number of objects (drawn uniformly)."""
LOW = ("colour", "shape", "existence", "count 1 to 5")
"""The rows that pre-training aims at; it asks for points of lone objects and captions too."""


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
    """Share of the commonest true answer: what a blind model can reach by always giving it."""


def held_out(name: str, n: int, sizes: tuple[float, float] = SIZES) -> list[tuple[np.ndarray, str, str]]:
    """Draw n held-out questions of a set, one a scene: (image uint8 (H, W, 3), question, answer)."""
    family, n_objects = SETS[name]
    seed = HELD_OUT_SEED + list(SETS).index(name)
    config = ScenesConfig(seed=seed, n_objects=n_objects, n_objects_spacing="uniform", size=sizes)
    drawn: list[tuple[np.ndarray, str, str]] = []
    index = 0
    while len(drawn) < n:
        scene = make_scene(config, index)
        drawn += [(render(scene), q.text, q.answer) for q in make_questions(scene, [family], 1, seed)]
        index += 1
    return drawn


def answers(
    model: Any, processor: Any, asked: Sequence[tuple[np.ndarray, str, str]], batch_size: int = 50
) -> list[str]:
    """Answer questions by greedy generation, in batches."""
    given: list[str] = []
    for start in range(0, len(asked), batch_size):
        part = asked[start : start + batch_size]
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
        given += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return given


def evaluate(
    folder: Path, n: int = 500, names: Sequence[str] = tuple(SETS), sizes: tuple[float, float] = SIZES
) -> list[Row]:
    """Measure a checkpoint folder on n held-out questions of each named set."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    rows = []
    for name in names:
        asked = held_out(name, n, sizes)
        truth = [answer for _, _, answer in asked]
        right = sum(a == b for a, b in zip(answers(model, processor, asked), truth, strict=True))
        interval = binomtest(right, n).proportion_ci(method="wilson")
        chance = Counter(truth).most_common(1)[0][1] / n
        rows.append(Row(name, n, right / n, float(interval.low), float(interval.high), chance))
    return rows


def draw_curves(curves: Sequence[Path], png: Path) -> None:
    """Draw the training curves that runs left in their work folder: losses above, shares right below."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(curves), figsize=(5 * len(curves), 5.5), sharex="col", squeeze=False)
    for (losses, shares), path in zip(axes.T, curves, strict=True):
        points = [json.loads(line) for line in path.read_text().splitlines()]
        begin = max((point["step"] for point in points if point["phase"] == "encoder"), default=0)
        for axis, names in (
            (losses, ("dense_loss", "answer_loss")),
            (shares, ("cover_shape", "cover_colour", "centre_shape", "answer_tokens_right")),
        ):
            for name in names:
                seen = [point for point in points if name in point]
                steps = [point["step"] + begin * (point["phase"] == "answers") for point in seen]
                axis.plot(steps, [point[name] for point in seen], label=name, lw=1.2)
            if begin:
                axis.axvline(begin, color="grey", lw=0.8, ls=":")
            axis.grid(alpha=0.3)
        losses.set(title=path.stem.removesuffix("-curve"), yscale="log", ylabel="loss")
        shares.set(xlabel="step", ylabel="share right", ylim=(0, 1))
        losses.legend(fontsize=8)
        shares.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(png, dpi=110)


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
    print("| questions | accuracy | 95 % interval | chance | n |\n|---|---|---|---|---|")
    for row in rows:
        shares = (f"{100 * share:.1f} %" for share in (row.accuracy, row.low, row.high, row.chance))
        print("| {} | {} | {} to {} | {} | {} |".format(row.name, *shares, row.n))
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
