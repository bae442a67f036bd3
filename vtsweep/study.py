"""A study in Python: its tables, what was found, its figures."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import polars as pl

from orchestrator.config import StageName
from orchestrator.config.sweep import Sweep
from orchestrator.errors import ConfigError, StorageError, did_you_mean
from orchestrator.store.study_record import Study as StudyRecord
from orchestrator.store.tables.core import TABLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Study(StudyRecord):
    """A finished, running or interrupted study, read from its files.

    >>> study = Study.load("quickstart")   # doctest: +SKIP
    >>> study.findings()   # doctest: +SKIP
    >>> study.figure()   # doctest: +SKIP
    """

    def findings(self) -> pl.DataFrame:
        """What the report says, a row a statement: about, statement, evidence, verdict (if it was tested), topic."""
        from orchestrator.report.collect import gather_results
        from orchestrator.report.words import summary

        rows = [
            {"about": about, "statement": s.text, "evidence": s.evidence, "verdict": s.verdict, "topic": s.topic}
            for about, statements in summary(gather_results(self))
            for s in statements
        ]
        return pl.DataFrame(
            rows, schema=dict.fromkeys(("about", "statement", "evidence", "verdict", "topic"), pl.String)
        )

    def answers(self) -> list[str]:
        """The sentences of the report's first screen."""
        from orchestrator.report.answer import answers
        from orchestrator.report.collect import gather_results
        from orchestrator.report.words import summary

        results = gather_results(self)
        return [answer.sentence for answer in answers(results, summary(results))]

    def figures(self) -> list[str]:
        """Names of the figures that the study has tables for, as `figure` takes them."""
        return list(self._drawings())

    def figure(self, name: str | None = None) -> Figure:
        """A figure of the report by name; the effect of the ratio, else compression by layer, when absent.

        Raises:
            ConfigError: there is no such figure; the message names the nearest.
            StorageError: nothing that is drawn has finished yet.
        """
        drawn = self._drawings()
        if not drawn:
            raise StorageError(
                f"study {self.name!r} has no finished stage to draw; vtsweep status {self.name} says more"
            )
        if name is None:
            name = next(
                (n for end in ("_ratio", "fig1_compression") for n in drawn if n.endswith(end)), next(iter(drawn))
            )
        if name not in drawn:
            raise ConfigError(f"unknown figure {name!r}.{did_you_mean(name, drawn)}")
        return drawn[name]()

    def _drawings(self) -> dict[str, Any]:
        from orchestrator.report.build import study_figures
        from orchestrator.report.collect import gather_results

        return dict(study_figures(gather_results(self)))

    def long(self, table: str = "layer_metrics") -> pl.LazyFrame:
        """A wide table tidy: a row a value, with the columns of its key, `name` and `value`.

        Columns of numbers are unpivoted (metrics of `layer_metrics`, outcomes of `trials`); others stay as they are.
        """
        frame = self.table(table)
        schema = frame.collect_schema()
        keys = {
            "point",
            "model",
            "source",
            *(TABLES[table].key if table in TABLES else ()),
            "n_tokens",
            "complexity_ratio",
            "seed",
        }
        values = [name for name, dtype in schema.items() if dtype.is_numeric() and name not in keys]
        kept = [name for name in schema.names() if name not in values]
        return frame.unpivot(values, index=kept, variable_name="name", value_name="value").drop_nulls("value")

    def _repr_html_(self) -> str:
        """The study in a notebook: what it asks, what it answers, how far it is."""
        rows = "".join(
            f"<tr><td>{escape(stage)}</td><td>{sum(v.stage.is_done() for v in self.views(stage))} done</td></tr>"
            for stage in self.stages
        )
        said = "".join(f"<p>{escape(sentence)}</p>" for sentence in self.answers())
        about = f"<p><i>{escape(str(self.record['description']))}</i></p>"
        return f"<h4>{escape(self.name)}</h4>{about}{said}<table>{rows}</table>"


def run_study(sweep: Sweep, *, stages: list[StageName] | None = None, quiet: bool = False) -> tuple[Study, str]:
    """Run a study's stages in order; whatever an earlier run finished is not done again.

    Args:
        sweep: what `load_sweep` or `make_sweep` returned.
        stages: run only these and what they read; all of the study's when absent.
        quiet: show no progress.

    Returns:
        The study, and the path of its report.
    """
    from orchestrator.study.run import run_study as run

    study, report = run(sweep, stages=stages, quiet=quiet)
    return Study(study.storage, study.record), report
