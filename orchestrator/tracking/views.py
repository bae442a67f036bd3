"""Shared views of MLflow's pages: runs, columns and charts that a link opens. Does not import MLflow.

A view is one experiment tag, `mlflow.sharedViewState.KEY`, whose state is zlib-compressed JSON. Its fields are MLflow's
own and undocumented (taken from 3.17); a browser test checks them, and MLflow ignores unknown ones.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FIRST_PORT = 5000
"""Default port of the server that `vtsweep ui` starts; the next free port if it is taken."""
TAG = "mlflow.sharedViewState."


@dataclass(frozen=True)
class SharedView:
    """One view.

    Args:
        key: key in links.
        name: title.
        stage: kind of stage whose child runs are listed.
        columns: shown columns, `params.NAME` or `metrics.NAME`.
        order: column that sorts the runs.
        charts: chart cards, see `scatter`, `lines` and `parallel`.
    """

    key: str
    name: str
    stage: str
    columns: Sequence[str]
    order: str
    charts: Sequence[Mapping[str, Any]]


def scatter(x: str, y: str) -> dict[str, Any]:
    """A scatter plot with one point per run; `x` and `y` are `params.NAME` or `metrics.NAME`."""
    return {"type": "SCATTER", "xaxis": _axis(x), "yaxis": _axis(y)}


def lines(metric: str) -> dict[str, Any]:
    """A metric against its step, one line per run."""
    return {
        "type": "LINE",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "selectedXAxisMetricKey": "",
        "range": {},
        "displayPoints": True,
    }


def bars(metric: str) -> dict[str, Any]:
    """A bar chart with one bar per run."""
    return {"type": "BAR", "metricKey": metric}


def parallel(params: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """Parallel coordinates of parameters and metrics, one line per run."""
    return {"type": "PARALLEL", "selectedParams": list(params), "selectedMetrics": list(metrics)}


def _axis(column: str) -> dict[str, str]:
    kind, _, key = column.partition(".")
    return {"key": key, "type": {"params": "PARAM", "metrics": "METRIC"}[kind]}


def encode(view: SharedView, now_ms: int) -> str:
    """The tag's value."""
    section = f"{view.key}-section"
    state = {
        "searchFilter": f"tags.`stage` = '{view.stage}'",
        "orderByKey": _column(view.order),
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": ["attributes.`Duration`", *map(_column, view.columns)],
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsHiddenMode": "SHOWALL",  # MLflow's default charts show only the first ten runs
        "groupBy": None,
        "isAccordionReordered": True,
        "compareRunSections": [
            {"uuid": section, "name": view.name, "display": True, "isReordered": True, "columns": 2}
        ],
        "compareRunCharts": [
            {
                "uuid": f"{view.key}-{number}",
                "metricSectionId": section,
                "runsCountToCompare": 100,
                "deleted": False,
                "isGenerated": False,
                **chart,
            }
            for number, chart in enumerate(view.charts)
        ],
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode())).decode()
    return json.dumps({"name": view.name, "createdAt": now_ms, "updatedAt": now_ms, "state": f"deflate;{packed}"})


def _column(column: str) -> str:
    kind, _, key = column.partition(".")
    return f"{kind}.`{key}`"


def page(address: str, experiment_id: str, key: str | None = None, *, charts: bool = True) -> str:
    """Address of an experiment's page with a shared view; without `key` its list of runs."""
    url = f"{address.rstrip('/')}/#/experiments/{experiment_id}"
    if key is None:
        return f"{url}?workflowType=machine_learning"
    shared = f"{url}/runs?workflowType=machine_learning&viewStateShareKey={key}"
    return shared + "&compareRunsMode=CHART" * charts


def keys_of(tags: Mapping[str, str]) -> dict[str, str]:
    """Title -> key of the shared views among an experiment's tags, the view of trials first."""
    titles = {key.removeprefix(TAG): json.loads(value)["name"] for key, value in tags.items() if key.startswith(TAG)}
    return {name: key for key, name in sorted(titles.items(), reverse=True)}


def changed(tags: Mapping[str, str], metrics_of: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Experiment tags of the study's views that are missing from `tags` or differ."""
    changes = {}
    for view in study_views(metrics_of):
        value = encode(view, int(1000 * time.time()))
        if json.loads(tags.get(TAG + view.key, "{}")).get("state") != json.loads(value)["state"]:
            changes[TAG + view.key] = value
    return changes


def study_views(metrics_of: Mapping[str, Sequence[str]]) -> list[SharedView]:
    """The views of a study, from the metric names of its runs by kind of stage; views without a chart are omitted."""
    views = []
    trial = set(metrics_of.get("finetune", ()))
    change = next(
        (m for m in ("delta/vision/stable_rank_centred/middle", *sorted(trial)) if _is_change(m, trial)), None
    )
    if "accuracy/high" in trial:
        compression = [f"metrics.{change}"] if change else []
        drift = [m for m in ("drift/vision/late", "drift/text/late") if m in trial]
        low = [m for m in ("accuracy/low",) if m in trial]
        columns = ["params.complexity_ratio", "params.seed", "metrics.accuracy/high", *[f"metrics.{m}" for m in low]]
        charts = [scatter(c, "metrics.accuracy/high") for c in compression]
        charts += [scatter("params.complexity_ratio", f"metrics.{m}") for m in ("accuracy/high", *low, *drift)]
        charts += [scatter("params.complexity_ratio", c) for c in compression]
        charts += [parallel(["complexity_ratio", "seed"], [*drift, *([change] if change else []), "accuracy/high"])]
        change_columns = [*compression, *[f"metrics.{m}" for m in drift]]
        title = "Compression against accuracy over the complexity ratio"
        views.append(
            SharedView("trials", title, "finetune", columns + change_columns, "params.complexity_ratio", charts)
        )
    if "loss" in trial:
        columns = ["params.complexity_ratio", "params.seed"]
        views.append(
            SharedView("training", "Loss by step", "finetune", columns, "params.complexity_ratio", [lines("loss")])
        )
    for key, stage, title, prefix in (
        ("captures", "capture", "Compression by layer", "compression/vision/"),
        ("probes", "probe", "Probe scores by layer", "probe/"),
        ("policies", "ablate", "Accuracy under token reduction", "policy/"),
    ):
        logged = [m for m in metrics_of.get(stage, ()) if m.startswith(prefix)]
        if key == "captures":  # single values by depth third would give charts of one bar
            logged = [m for m in logged if not m.endswith(("/early", "/middle", "/late"))]
        if logged:
            chart = bars if key == "policies" else lines
            columns = ["params.model", "params.data"]
            views.append(SharedView(key, title, stage, columns, "params.model", [chart(m) for m in logged[:12]]))
    return views


def _is_change(metric: str, names: set[str]) -> bool:
    return metric in names and metric.startswith("delta/vision/")
