"""`python -m orchestrator.ablate.selectors.document` writes the table of selection methods into docs/causal.md."""

from __future__ import annotations

from pathlib import Path

from orchestrator.ablate.selectors.entries import ENTRIES
from orchestrator.ablate.selectors.kinds import Selector

BEGIN, END = "<!-- selectors -->\n", "<!-- /selectors -->"
_READS = {
    "text": "text states",
    "attention": "attention of the layer before",
    "own_attention": "the layer's own attention",
    "keys": "its keys",
    "encoder": "encoder attention",
    "encoder_last": "attention of the encoder's last block",
    "full_pass": "before the decoder: attention of all layers",
}


def to_markdown() -> str:
    """The table, one row a method."""
    lines = ["| method | keeps | reads | its own operations | source |", "|---|---|---|---|---|"]
    for entry in ENTRIES:
        settings = ", ".join(f"`{key}` {value:.3g}" for key, value in entry.settings.items())
        keeps = entry.keeps + (f" ({settings})" if settings else "") + ("; merges" if entry.merges else "")
        lines.append(f"| `{entry.name}` | {keeps} | {_reads(entry)} | {entry.cost} | {entry.source} |")
    return "\n".join(lines) + "\n"


def _reads(entry: Selector) -> str:
    return ", ".join(text for need, text in _READS.items() if need in entry.needs) or "visual states"


def write(path: Path) -> None:
    """Put the table between its marks."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    path.write_text(before + BEGIN + to_markdown() + END + rest.split(END, 1)[1], encoding="utf-8")


if __name__ == "__main__":
    write(Path("docs/causal.md"))
