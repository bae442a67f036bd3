"""Whatever is shown as the best, largest or first of several says of how many, in the report and on the terminal."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import matplotlib.pyplot as plt
import polars as pl
from matplotlib.text import Text

import orchestrator
from orchestrator.finetune.sweep_summary import contrasts
from orchestrator.report.figures.trials import ratio_figure, trials_figure
from orchestrator.report.ratio_words import ratio_statements
from orchestrator.report.statement import Statement
from orchestrator.report.words import summary
from tests.report.fake_study import fake_study

ROOT = Path(orchestrator.__file__).parent
EXTREME = re.compile(
    r"\b(best|strongest|largest|highest|surest|weakest|worst|mildest|first layer|falls first|survives longest"
    r"|reads vision most|goes? most|smallest with)\b",
    re.IGNORECASE,
)
OF_HOW_MANY = re.compile(r"\bof (the )?(\{\}|\d)|\{\} of \{\}|\d of \d|\{\} others")
NO_CHOICE = {
    r"best blind answers|best answers (that can be given )?without the image": "a definition",
    r"the largest ratio|largest less smallest ratio": "an end of an axis",
    r"^best$|^worst$|^largest$": "a name in code",
    r"keeps most accuracy": "a question",
    r"lower compression most|vision tokens the most|right after the first layer": "a claim of the paper, with its rule",
    r"^highest$": "a head of a column beside one that names the number of tokens",
    r"weakest tenth": "a quantile",
    r"weaker driver above strongest other": "a unit; the statement beside it names the number",
    r"layer's highest": "a scale",
    r"strongest_correlations|rho_strongest/|probe_best/|rho_strongest_of|probe_best_of|skill_(best|worst)"
    r"|best_(layer|score|token)": "a key; `..._of` beside it is the number",
    r"^first layer$": "a head of a column beside one that names the number of layers",
    r"falls first|survives longest": "put into a statement that names the number (tested below)",
    r"Text reads vision most": "a statement whose evidence names the number (tested below)",
}


def literals(source: str) -> list[str]:
    """Texts of a module with {} for each value that is put in; neighbouring texts are one; no docstrings."""
    tree = ast.parse(source)
    ignored = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in ignored | inside:
            found.append(node.value)
    return found


def unsaid(text: str) -> bool:
    """Whether a text names an extreme and neither its number nor a reason why there was no choice."""
    kept = text
    for reason in NO_CHOICE:
        kept = re.sub(reason, "", kept)
    return bool(EXTREME.search(kept)) and not OF_HOW_MANY.search(text)


def test_every_text_in_the_code_that_names_an_extreme_names_its_number() -> None:
    modules = [*(ROOT / "report").rglob("*.py"), *(ROOT / "cli").glob("*.py"), *(ROOT / "correlate").glob("*.py")]
    found = [f"{path.name}: {text}" for path in modules for text in literals(path.read_text()) if unsaid(text)]
    for path in (ROOT / "report" / "templates").glob("*.js"):
        texts = re.findall(r"`[^`]*`|\"[^\"\n]*\"", path.read_text())
        found += [f"{path.name}: {t}" for t in texts if unsaid(re.sub(r"\$\{[^}]*\}", "{}", t).strip('`"'))]
    assert not found, "\n".join(found)


def test_the_search_for_such_texts_finds_them() -> None:
    source = 'x = f"the best layer is {layer}"\ny = "strongest correlation"\nz = f"best of {n} layers"\n"""largest"""\n'
    assert [t for t in literals(source) if unsaid(t)] == ["the best layer is {}", "strongest correlation"]


def test_every_statement_of_a_report_that_names_an_extreme_names_its_number() -> None:
    said = [s for _, part in summary(fake_study(2)) for s in part]
    texts = [f"{s.text} {s.evidence}" for s in said]
    named = [t for t in texts if EXTREME.search(t)]
    assert len(named) >= 4
    kept = {k: v for k, v in NO_CHOICE.items() if "tested below" not in v}
    left = []
    for text in named:
        rest = text
        for reason in kept:
            rest = re.sub(reason, "", rest)
        if EXTREME.search(rest) and not OF_HOW_MANY.search(text):
            left.append(text)
    assert not left, "\n".join(left)
    assert any("of 2 kinds of question" in t or "kinds of question with something to lose" in t for t in texts)
    assert any(re.search(r"largest loss of \d+ windows", t) for t in texts)


def test_figures_say_of_how_many_a_column_was_chosen() -> None:
    trials = next(p.trials for p in fake_study(1).points if p.trials is not None)
    for figure in (trials_figure(trials, "t", "accuracy/high"), ratio_figure(trials, "t", {})):
        words = " ".join(one.get_text() for one in figure.findobj(Text))
        plt.close(figure)
        assert re.search(r"of \d+ (columns that go most|by the outcome)", words), words


def test_compression_on_the_questions_own_images_is_told_beside_the_fixed_prompt() -> None:
    """A change planted on the questions' own images alone is seen there, in its own contrast and statement."""
    rows = [
        {
            "status": "done", "complexity_ratio": ratio, "seed": seed, "accuracy/high": 0.5 + 0.01 * seed,
            "delta/vision/stable_rank_centred/middle": 0.001 * seed * (1 + ratio),
            "compression/vision/stable_rank_centred/middle": 2.0,
            "asked/high/delta/vision/stable_rank_centred/middle": (0.5 + 0.01 * seed) * ratio,
            "asked/high/compression/vision/stable_rank_centred/middle": 2.0 + 0.5 * ratio,
        }
        for ratio in (0.0, 1.0)
        for seed in range(4)
    ]  # fmt: skip
    trials = pl.DataFrame(rows)
    table = contrasts(trials, ("delta/vision/stable_rank_centred/middle",))
    own = table.row(by_predicate=pl.col("outcome") == "asked/high/delta/vision/stable_rank_centred/middle", named=True)
    assert own["effect"] > 0.5
    assert own["smallest"] == 0.1  # 5 % of the compression at the smallest ratio, not of the change
    assert not own["primary"]
    assert own["q"] < 0.05
    assert not [name for name in table["outcome"] if "/compression/" in name]
    said: list[Statement] = list(ratio_statements(trials, {"contrasts": table.to_dicts()}))
    (told,) = [s for s in said if "own images and prompts" in s.text]
    assert "high tier: vision tokens get less compressed" in told.text
    assert "80 % power" in told.evidence
