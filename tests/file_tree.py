"""The file tree of docs/development.md, from the first line of each module. `python -m tests.file_tree` writes it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "development.md"
ROOMS = {
    "orchestrator": "the package: what every folder uses",
    "orchestrator/cli": "commands, terminal tables, doctor, init",
    "orchestrator/config": "every setting of a study, sweep files, search spaces",
    "orchestrator/study": "the main flow: resolve, preflight, plan, run",
    "orchestrator/store": "file systems, stage folders, study records",
    "orchestrator/store/tables": "the schema of every table",
    "orchestrator/cluster": "Ray sessions, placement of workers, job submission",
    "orchestrator/data": "images, what is in them, questions about them",
    "orchestrator/models": "one way to use any vision-language model",
    "orchestrator/capture": "activations in, metrics and kept features out",
    "orchestrator/compression": "metrics: arrays in, numbers out",
    "orchestrator/stats": "intervals, tests, corrections, verdicts",
    "orchestrator/correlate": "compression against image attributes",
    "orchestrator/probes": "what each token knows",
    "orchestrator/finetune": "one LoRA trial",
    "orchestrator/finetune/ray": "Ray Tune around trials",
    "orchestrator/ablate": "which tokens the decoder uses",
    "orchestrator/report": "the page, summaries, figures",
    "orchestrator/report/figures": "static figures",
    "orchestrator/tracking": "finished stages as MLflow runs",
    "orchestrator/reference": "the shipped checkpoints and how they are trained",
    "jobs": "entry points for `ray job submit`",
    "benchmarks": "speed and memory as ratios; each ends in one line of JSON",
}
OTHERS = {
    "sweeps/*.yaml": "studies; each opens with its command and what to expect",
    "deploy/, cluster.yaml": "clusters: cloud autoscaling, fixed hosts, Kubernetes",
    "tests/": "properties, one folder a room",
    "docs/": "tables, metrics, models, cluster, development, log",
}


def phrase(path: Path) -> str:
    """First sentence of a module's docstring."""
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[.;])\s", text)[0].rstrip(".;")


def file_tree() -> str:
    """The tree as one code block's content."""
    lines = []
    for room, what in ROOMS.items():
        lines.append(f"{room + '/':<28} {what}")
        modules = sorted(p for p in (ROOT / room).glob("*.py") if p.name != "__init__.py")
        lines += [f"  {module.name:<26} {phrase(module)}" for module in modules]
    return "\n".join(lines + [f"{name:<28} {what}" for name, what in OTHERS.items()]) + "\n"


def replaced(page: str) -> str:
    """`page` with the tree between its markers."""
    head, _, rest = page.partition("<!-- files -->\n")
    return f"{head}<!-- files -->\n```\n{file_tree()}```\n<!-- /files -->{rest.partition('<!-- /files -->')[2]}"


if __name__ == "__main__":
    target = PAGE
    target.write_text(replaced(target.read_text(encoding="utf-8")), encoding="utf-8")
