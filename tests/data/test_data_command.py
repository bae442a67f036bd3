"""`vtsweep data` and the documented examples of docs/data.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.cli.app import main
from orchestrator.config.sweep import load_sweep

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def block(kind: str, begins: str = "") -> str:
    return next(b for b in re.findall(rf"```{kind}\n(.*?)```", TEXT, flags=re.DOTALL) if b.startswith(begins))


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VTSWEEP_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "my_questions"
    root.mkdir()
    lines = block("jsonl")
    for i in range(2, 8):
        row = {
            "id": f"q{i}",
            "image": f"{i}.png",
            "question": "is there a <cat> ?",
            "answer": "no",
            "choices": ["yes", "no"],
        }
        lines += json.dumps({**row, "complexity": i / 8, "n_people": i}) + "\n"
    (root / "questions.jsonl").write_text(lines)
    for i, name in enumerate(["a.png", "b.png", *(f"{i}.png" for i in range(2, 7))]):
        Image.new("RGB", (60 + i, 40), (30 * i, 9, 9)).save(root / name)
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0), capsys.readouterr().out


def test_the_overview_says_what_a_question_file_holds(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    code, out = run(capsys, "data", str(questions / "questions.jsonl"), "--json", "--html", str(page))
    assert code == 0
    found = json.loads(out)
    assert (found["n_rows"], found["n_opened"], len(found["faults"])) == (8, 8, 1)
    assert "7.png: missing" in found["faults"][0]
    assert found["sizes"] == {"width": [60, 63.0, 66], "height": [40, 40.0, 40]}
    (family,) = found["families"]
    assert (family["rows"], family["most frequent"], family["share"]) == (8, "no", 7 / 8)
    kinds = {one["attribute"]: one["kind"] for one in found["attributes"]}
    assert kinds == {"family": "categorical", "complexity": "continuous", "n_people": "count"}
    assert found["correlations"][0]["first"] == "complexity"
    text = page.read_text()
    assert text.count("<img") == 5
    assert "is there a &lt;cat&gt; ?" in text
    assert "<cat>" not in text
    code, out = run(capsys, "data", str(questions / "questions.jsonl"))
    assert code == 0
    assert "8 rows" in out


def test_the_documented_study_and_the_sweep_files_expand(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = questions / "study.yaml"
    sweep.write_text(block("yaml", "name: questions"))
    code, out = run(capsys, "data", str(sweep), f"data.root={questions}", "--json")
    assert code == 0
    assert json.loads(out)["n_rows"] == 8
    for name in ("questions", "gqa", "pope"):
        (point,) = load_sweep(ROOT / "sweeps" / f"{name}.yaml", ["data.root=/data"]).points
        assert point.run.data.source == "questions"


def test_a_layout_of_ones_own_works_as_documented(tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "my_layout.py").write_text(block("python", "# my_layout.py"))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (group, line) = re.findall(r'entry-points\."([^"]+)"\]\n(\w+ = "[^"]+")', TEXT)[0]
    (info / "entry_points.txt").write_text(f"[{group}]\n{line.replace(chr(34), '')}\n")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 6), (9, 8, 7)).save(tmp_path / "photos" / "a.png")
    row = {"uid": 1, "picture": "a.png", "ask": "what ?", "gold": "dog", "kind": "object"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    code = (
        f"import sys, json; sys.path.insert(0, {str(site)!r})\n"
        "from orchestrator.config import QuestionsConfig\n"
        "from orchestrator.data.source import make_source\n"
        f"source = make_source(QuestionsConfig(root={str(tmp_path)!r}, layout='mine'))\n"
        "print(json.dumps([source.load(0).prompt, source.question(0).answer, source.fingerprint()['package']]))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert json.loads(found.stdout) == ["what ?", "dog", {"mine": "mine 1.0"}]
