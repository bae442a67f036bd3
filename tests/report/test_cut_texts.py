"""No words of a static figure are cut by its edge."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from orchestrator.compression.registry import METRIC_NAMES
from orchestrator.report.build import study_figures
from orchestrator.report.figures import ratio_figure, trials_figure
from orchestrator.report.figures.trials import column_words
from orchestrator.report.style import main_metrics
from tests.report.fake_study import fake_study, fake_trials


def cut_texts(figure: Figure) -> Iterator[str]:
    """Texts that reach over the figure's edge by more than a pixel; labels of ticks out of view are not drawn."""
    figure.canvas.draw()
    ticks = {id(t) for axes in figure.axes for t in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    ticks |= {id(t) for axes in figure.axes for k in (axes.xaxis, axes.yaxis) for t in k.get_ticklabels(minor=True)}
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if id(text) in ticks or not text.get_visible() or not text.get_text().strip():
            continue
        box = text.get_window_extent()
        if min(*box.min) < -1 or (box.max > np.array(figure.bbox.max) + 1).any():
            yield text.get_text()


def test_words_of_every_figure_are_whole() -> None:
    found = {name: list(cut_texts(draw())) for name, draw in study_figures(fake_study(2))}
    assert len(found) > 20
    assert {name: texts for name, texts in found.items() if texts} == {}


@pytest.mark.parametrize("group", ["vision", "text"])
def test_the_longest_outcomes_have_whole_titles(group: str) -> None:
    trials = fake_trials(np.random.default_rng(0))
    deltas = [c for c in trials.columns if c.startswith("delta/")]
    columns = (f"delta/{group}/{name}/middle" for name in main_metrics(set(METRIC_NAMES)))
    longest = sorted(columns, key=lambda c: len(column_words(c)))[-2:]
    trials = trials.drop(deltas[2:]).rename(dict(zip(deltas[:2], longest, strict=True)))
    for figure in (ratio_figure(trials, "reference-joint"), trials_figure(trials, "reference-joint", "accuracy/high")):
        texts = " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")
        assert any(column_words(column) in texts for column in longest)
        assert list(cut_texts(figure)) == []
