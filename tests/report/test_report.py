import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

from orchestrator.compression.registry import METRIC_NAMES
from orchestrator.errors import DataError
from orchestrator.report import style as report_style
from orchestrator.report.build import compared, make_comparison, make_report
from orchestrator.report.collect import mean_of_pictures
from orchestrator.report.page import render_page
from orchestrator.report.payload import encode, payload
from orchestrator.report.words import summary
from orchestrator.store.filesystem import Storage
from tests.report.fake_study import fake_point, fake_study


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(fake_study(2))


def test_every_figure_is_written_as_png_and_svg_beside_the_page(tmp_path):
    written = make_report(fake_study(1), Storage(str(tmp_path)))
    assert written[0] == "report.html"
    assert all((tmp_path / name).stat().st_size > 500 for name in written)
    stems = {n.rsplit(".", 1)[0] for n in written[1:] if n.startswith("figures/")}
    assert stems == {n.removesuffix(".png") for n in written if n.endswith(".png")}
    names = {s.split("/")[-1] for s in stems}
    assert {"fig1_compression", "fig2_spearman_vision", "fig4_probes"} <= names
    assert {"deletion", "rivals", "knockout", "patching", "routes", "replacing", "lens", "attention"} <= names
    assert {"rival_ranks", "attention_maps_question", "attention_maps_last"} <= names
    assert {"token_maps", "fig4_probe_curves", "fig4_probe_places"} <= names
    assert (tmp_path / "figures/reference-joint-scenes/fig1_compression.png").read_bytes()[:4] == b"\x89PNG"


def test_coco_figures_are_numbered_three_and_five():
    from orchestrator.report.build import point_figures

    names = {name for name, _ in point_figures(fake_point(source="coco"))}
    assert {"fig3_spearman_vision", "fig5_probes"} <= names


def test_page_asks_the_network_for_nothing(page):
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    assert not re.findall(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


class _Balance(HTMLParser):
    void = frozenset(("meta", "link", "img", "input", "br"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_its_ids_are_unique(page):
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))


def test_page_of_a_full_study_stays_below_five_megabytes():
    deep = [
        replace(fake_point(n_images=4, n_layers=32, seed=k, names=METRIC_NAMES), label=f"model {k}") for k in range(2)
    ]
    page = render_page(replace(fake_study(1), points=tuple(deep)))
    assert len(page.encode()) < 5_000_000


def test_a_hostile_name_stays_text():
    study = replace(
        fake_study(1), name="<script>alert(1)</script>", description="</script><img src=x onerror=alert(1)>"
    )
    point = replace(study.points[0], label="</script><b>bold</b>")
    page = render_page(replace(study, points=(point,)))
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert json.loads(data.group(1))["points"][0]["label"] == "</script><b>bold</b>"


def test_what_is_not_there_is_left_out():
    causal = ("deletion", "rivals", "knockout", "routes", "replacing", "lens", "attention", "patching")
    gone = dict.fromkeys(("probes", "trials", *causal))
    point = replace(fake_point(), **gone, token_maps=())
    page = render_page(replace(fake_study(1), points=(point,)))
    for anchor in ("probes", "tokens", *causal, "trials"):
        assert f'<section id="{anchor}"' not in page
    assert '<section id="compression"' in page


def test_a_study_without_results_says_so_and_how_to_go_on():
    page = render_page(replace(fake_study(1), points=()))
    assert "No stage with findings has finished yet" in page
    assert "vtsweep run sweeps/invented.yaml" in page


def test_claims_carry_their_verdict_and_interval():
    statements = dict(summary(fake_study(1)))["reference-joint, scenes"]
    depth, objects = statements[:2]
    assert (depth.verdict, objects.verdict) == ("supported", "undecided")
    assert "[0.90, 1.30], n = 60" in depth.evidence
    assert "[−0.10, 0.30]" in objects.evidence


def test_summary_names_what_falls_first_and_what_survives():
    texts = [s.text for s in dict(summary(fake_study(1)))["reference-joint, scenes"]]
    assert any("counting" in t and "falls first" in t for t in texts)
    assert any("colour" in t and "survives longest" in t for t in texts)
    assert any("layers 2 to 3" in t for t in texts)


def test_questions_the_model_never_answers_do_not_survive():
    point = fake_point()
    assert point.deletion is not None
    high = (pl.col("tier") == "high") & (pl.col("family") == "relation")
    flat = [pl.when(high).then(0.0).otherwise(pl.col(c)).alias(c) for c in ("accuracy", "ci_low")]
    study = replace(fake_study(1), points=(replace(point, deletion=point.deletion.with_columns(flat)),))
    texts = [s.text for s in dict(summary(study))["reference-joint, scenes"]]
    assert not any("relation (high" in t for t in texts)


def test_a_thing_has_the_same_colour_in_page_and_figures(page):
    for thing in ("vision", "text", *report_style.FAMILIES):
        prefix = "" if thing in ("vision", "text") else "family-"
        assert f"--{prefix}{thing}: {report_style.colour_of(thing)}" in page


def test_encoded_numbers_come_back_within_a_step():
    values = [0.0, -1.0, 1.0, 0.123, None]
    table = encode(pl.DataFrame({"rho": values, "name": ["a", "b", "a", None, "c"]}), {"rho": (-1.0, 1.0)})
    import base64

    codes = np.frombuffer(base64.b64decode(table["columns"]["rho"]["data"]), "<u2")
    back = [None if c == 65535 else -1 + 2 * int(c) / 65534 for c in codes]
    assert back[4] is None
    np.testing.assert_allclose(back[:4], values[:4], atol=2e-5)
    assert table["columns"]["name"]["words"] == ["a", "b", "", "c"]


def test_compared_studies_keep_every_point_apart():
    one, two = fake_study(1), replace(fake_study(2), name="other")
    together = compared([one, two])
    labels = [p.label for p in together.points]
    assert len(labels) == len(set(labels)) == 3
    assert together.stages is not None
    assert set(together.stages["study"]) == {"invented", "other"}


def test_points_that_share_a_capture_are_measured_once():
    from orchestrator.report.model import distinct_points

    twin = replace(fake_point(), label="another trial of the same model")
    assert len(distinct_points((fake_point(), twin))) == 1


def test_a_table_with_a_missing_column_is_refused():
    with pytest.raises(DataError, match="columns"):
        replace(fake_point(), deletion=pl.DataFrame({"method": ["random"]}))


def test_comparison_writes_one_page_for_both(tmp_path):
    bare = [
        replace(s, points=tuple(replace(p, layer_metrics=None, correlations=None, probes=None) for p in s.points))
        for s in (fake_study(1), replace(fake_study(1), name="other"))
    ]
    written = make_comparison(bare, Storage(str(tmp_path)))
    page = (tmp_path / written[0]).read_text()
    assert "invented against other" in page


def test_a_column_of_a_table_is_aligned_as_one():
    mixed = pl.DataFrame({"stage": ["capture", "probe"], "digest": ["17d5ff", "eecce6"], "share": [0.5, None]})
    page = render_page(replace(fake_study(1), stages=mixed))
    assert page.count('<td class="left">17d5ff</td>') == page.count('<td class="left">eecce6</td>') == 1
    assert '<th scope="col" class="left">digest</th>' in page
    assert '<th scope="col">share</th>' in page


def test_the_page_says_when_it_was_made_in_words():
    page = render_page(replace(fake_study(1), created="2026-11-25T21:12:28+00:00"))
    assert '<time datetime="2026-11-25T21:12:28+00:00">25 November 2026, 21:12 UTC</time>' in page


def test_the_chart_of_a_tiers_accuracy_has_the_interval_that_the_words_state():
    effect = [
        {"complexity_ratio": r, "n_seeds": 2, "mean": m, "ci_low": m - 0.1, "ci_high": m + 0.1, "gain": 0.0}
        for r, m in ((0.0, 0.3), (1.0, 0.5))
    ]
    point = replace(fake_point(), sweep={"tiers": {"high": {"effect": effect, "sufficient_ratio": None}}})
    study = replace(fake_study(1), points=(point,))
    (trials,) = payload(study)["trials"].values()
    drawn = trials["effects"]["accuracy/high"]
    assert [(r["ci_low"], r["ci_high"]) for r in drawn] == [(r["ci_low"], r["ci_high"]) for r in effect]
    told = [s.evidence for _, statements in summary(study) for s in statements if "(high tier)" in s.text]
    assert "[20 %, 40 %] and [40 %, 60 %]" in told[0]


def test_images_of_questions_about_several_are_shown_each_alone():
    pictures = pl.DataFrame(
        {
            "image_id": ["a", "a", "b", "b"],
            "picture": [0, 1, 0, 1],
            "tap": ["decoder"] * 4,
            "layer": [2] * 4,
            "n_tokens": [16, 64, 16, 32],
            "gini": [0.25, 0.5, 0.75, float("nan")],
        }
    )
    found = mean_of_pictures(pictures)
    assert found.rows() == [(0, "decoder", 2, 2, 16.0, 0.5), (1, "decoder", 2, 2, 48.0, 0.5)]
    study = fake_study(1)
    shown = replace(study.points[0], further={"picture_metrics": found})
    assert "picture metrics" in render_page(replace(study, points=(shown,)))


def test_the_whole_model_is_no_place_where_text_reads_vision():
    """Blocked in all layers it costs most, and names no layer; neither does a window that has no other beside it."""
    study = fake_study(1)
    point = next(p for p in study.points if p.knockout is not None)
    width = pl.col("last_layer") - pl.col("first_layer")
    most = pl.when(width == width.max()).then(0.0).otherwise(pl.col("accuracy"))
    point = replace(point, knockout=point.knockout.with_columns(most.alias("accuracy")))
    whole = point.knockout.filter((width == width.max()) | (width < 0))

    def told(knockout: pl.DataFrame) -> str:
        points = (replace(point, knockout=knockout),)
        said = [s for _, part in summary(replace(study, points=points)) for s in part if s.topic == "knock-out"]
        return " ".join(f"{s.text} {s.evidence}" for s in said)

    last = point.knockout["last_layer"].max()
    assert "reads vision most in layers" in told(point.knockout)
    assert f"layers 0 to {last}" not in told(point.knockout)
    assert f"in layers 0 to {last} costs" in told(whole)
    assert "most" not in told(whole)
