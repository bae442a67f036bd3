"""A question file of one's own for tests: small scenes as pictures, with the questions that can be asked of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from orchestrator.config import ScenesConfig
from orchestrator.data.examples import make_example
from orchestrator.data.render import render


def write_own_questions(
    root: Path, n: int, families: tuple[str, ...] = ("colour", "existence"), name: str = "questions.jsonl"
) -> list[dict[str, Any]]:
    """n rows and pictures below `root`: families in turn, half of them with few objects and half with many."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        n_objects = (1, 4) if i % 2 else (6, 12)
        family = families[i // 2 % len(families)]
        config = ScenesConfig(n_objects=n_objects, width=128, height=128)
        scene, question = make_example(config, family, None, 5, i, room=4)
        Image.fromarray(render(scene)).save(root / f"{i}.png")
        row = {"id": f"q{i}", "image": f"{i}.png", "question": question.text, "answer": question.answer}
        row |= {"choices": question.choices and list(question.choices), "family": family}
        rows.append({**row, "n_people": len(scene.objects), "album": f"a{i // 6}"})
    (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows
