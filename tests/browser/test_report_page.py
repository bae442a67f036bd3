from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from orchestrator.report.page import render_page
from tests.report.fake_study import FAKE_METRICS, fake_point, fake_study

pytestmark = pytest.mark.browser
CAUSAL = ("deletion", "rivals", "knockout", "routes", "replacing", "patching", "lens", "attention")
SECTIONS = ("compression", "correlation", "probes", "tokens", *CAUSAL, "trials")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_page(fake_study(2)))
    return path.as_uri()


def _drawing(page, section: str) -> str:
    return page.inner_html(f"#{section} .panels")


def _fields(page, section: str) -> list[str]:
    fields = f"#{section} .controls .control:not([hidden]) select"
    return page.eval_on_selector_all(fields, "all => all.map(e => e.id)")


def test_page_opens_from_disk_without_errors_or_requests(watched, url):
    seen = watched(url)
    assert seen.page.get_attribute("html", "data-ready") == "yes"
    assert seen.said == []
    assert [u for u in seen.asked if not u.startswith("data:")] == [url]


def test_every_section_draws_something_and_fits_the_window(watched, url):
    for width in (1280, 400):
        seen = watched(url)
        seen.page.set_viewport_size({"width": width, "height": 900})
        for section in SECTIONS:
            assert seen.page.locator(f"#{section} .panels svg").count() >= 1, section
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


CLIPPED = """() => [...document.querySelectorAll("svg.chart text")].filter(t => t.textContent).map(t => {
    const svg = t.closest("svg"), box = t.getBoundingClientRect(), chart = svg.getBoundingClientRect();
    const over = [chart.left - box.left, box.right - chart.right, chart.top - box.top, box.bottom - chart.bottom];
    const size = parseFloat(getComputedStyle(t).fontSize) * chart.width / svg.viewBox.baseVal.width;
    return [t.textContent, Math.round(Math.max(...over)), Math.round(size)];
})"""
"""Of every text of every chart: what it says, pixels by which it leaves its chart, and its size on the screen."""
DRAW_LONG = """() => {
    const long = "Change of the stable rank (centred) of visual tokens in the middle layers of the model";
    const point = (x, name) => ({ x, y: x, lines: [name], colour: "red" });
    const chart = scatterChart({ title: long, hint: `up = more compressed, ${long}`, x: { label: long },
        y: { label: "y" }, points: [point(0, "low"), point(1, "high")] });
    chart.id = "long";
    document.querySelector("#trials .panels").append(chart);
}"""


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_no_word_of_a_chart_is_cut_or_too_small_to_read(watched, url, width):
    page = watched(url).page
    page.set_viewport_size({"width": width, "height": 900})
    page.reload()
    texts = page.evaluate(CLIPPED)
    assert len(texts) > 100
    assert [text for text in texts if text[1] > 1] == []
    assert [text for text in texts if text[2] < 9] == []


def test_long_words_of_a_chart_are_wrapped_and_its_marks_stay_under_the_pointer(watched, url):
    page = watched(url).page
    page.set_viewport_size({"width": 400, "height": 900})
    before = page.evaluate(CLIPPED)
    page.evaluate(DRAW_LONG)
    texts = page.evaluate(CLIPPED)
    assert len(texts) > len(before) + 5
    assert [text for text in texts if text[1] > 1] == []
    page.locator("#long circle.point").nth(1).hover()
    assert "high" in page.inner_text("#tip")


def test_every_control_changes_what_is_drawn(watched, url):
    seen = watched(url)
    page = seen.page
    tried = 0
    for section in SECTIONS:
        for name in _fields(page, section):
            field = page.locator(f"#{name}")
            start = field.input_value()
            for value in field.evaluate("e => [...e.options].map(o => o.value)")[:4]:
                if field.input_value() == value or field.is_disabled():
                    continue
                before = _drawing(page, section)
                field.select_option(value)
                assert _drawing(page, section) != before, (name, value)
                tried += 1
            if not field.is_disabled():
                field.select_option(start)
    assert tried > 15
    assert seen.said == []


def test_layer_of_the_place_map_follows_its_slider(watched, url):
    page = watched(url).page
    before = _drawing(page, "probes")
    page.locator("#probes-layer").fill("2")
    assert _drawing(page, "probes") != before
    assert "by place, layer 2" in page.inner_text("#probes .panels")


def test_points_can_be_hidden_everywhere(watched, url):
    page = watched(url).page
    page.select_option("#compression-lay", "beside")
    both = page.locator("#compression .panels svg.chart").count()
    page.locator("#points input").nth(1).uncheck()
    assert page.locator("#compression .panels svg.chart").count() == both / 2
    assert "coco" not in page.inner_text("#correlation .panels")


def test_pointer_and_arrow_keys_read_values(watched, url):
    page = watched(url).page
    page.select_option("#compression-depth", "layer")
    page.select_option("#compression-lay", "beside")
    page.locator("#compression svg.chart").nth(1).hover()
    assert "vision tokens:" in page.inner_text("#tip")
    page.locator("#compression svg.chart").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#live").startswith("layer 0")
    page.keyboard.press("ArrowRight")
    assert "layer 1" in page.inner_text("#live")
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_a_heat_map_cell_is_read_and_chosen_by_keyboard(watched, url):
    page = watched(url).page
    page.locator("#correlation svg.chart").first.focus()
    for key in ("ArrowUp", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert "q = " in page.inner_text("#live")
    before = _drawing(page, "correlation")
    page.keyboard.press("Enter")
    assert _drawing(page, "correlation") != before


def test_every_chart_has_its_numbers_as_a_table(watched, url):
    page = watched(url).page
    for section in SECTIONS:
        page.locator(f"#{section} details.numbers summary").click()
        page.locator(f"#{section} details.numbers td").nth(3).wait_for()


def test_charts_and_fields_have_names(watched, url):
    page = watched(url).page
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('select, input, button, svg.chart, img')].filter(e =>
            !(e.labels && e.labels.length) && !e.ariaLabel && !e.getAttribute('alt') && !e.textContent.trim()
        ).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []


def test_trial_table_sorts_by_a_heading(watched, url):
    page = watched(url).page
    cells = "#trials .trial-table tbody tr td:nth-child(2)"
    page.locator("#trials button.sort").nth(1).click()
    rising = [float(t) for t in page.locator(cells).all_inner_texts()]
    page.locator("#trials button.sort").nth(1).click()
    falling = [float(t) for t in page.locator(cells).all_inner_texts()]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


def test_dark_page_and_theme_button(watched, url):
    seen = watched(url, color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert seen.page.evaluate(paper) == "rgb(20, 24, 29)"
    seen.page.click("#theme")
    assert seen.page.inner_text("#theme") == "Theme: light"
    assert seen.page.evaluate(paper) == "rgb(246, 247, 249)"
    assert seen.said == []


def test_text_contrast_is_readable_in_both_themes(watched, url):
    """WCAG 2.2: at least 4.5 between text colours and the panel."""
    for scheme in ("light", "dark"):
        page = watched(url, color_scheme=scheme).page
        ratios = page.evaluate(
            """() => {
                const linear = (x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
                const light = (c) => { const v = c.map(x => linear(x / 255));
                    return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
                const probe = document.body.appendChild(document.createElement('i'));
                const rgb = (name) => { probe.style.color = `var(--${name})`;
                    return getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number); };
                return Object.fromEntries(['ink', 'soft', 'accent', 'good', 'bad', 'open'].map(n => {
                    const [a, b] = [light(rgb(n)), light(rgb('panel'))].sort((x, y) => y - x);
                    return [n, (a + 0.05) / (b + 0.05)]; }));
            }"""
        )
        assert min(ratios.values()) >= 4.5, (scheme, ratios)


def test_print_is_light_and_without_controls(watched, url, tmp_path: Path):
    seen = watched(url, color_scheme="dark")
    seen.page.emulate_media(media="print")
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert seen.page.locator(".controls:visible").count() == 0
    seen.page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").stat().st_size > 20_000


def test_a_page_of_captures_alone_works(watched, tmp_path: Path):
    gone = dict.fromkeys(("correlations", "probes", "trials", *CAUSAL))
    point = replace(fake_point(), **gone)
    path = tmp_path / "report.html"
    path.write_text(render_page(replace(fake_study(1), points=(replace(point, token_maps=()),))))
    seen = watched(path.as_uri())
    assert seen.said == []
    assert seen.page.locator("#compression svg.chart").count() == len(FAKE_METRICS)


def test_small_numbers_keep_their_digits(watched, url):
    page = watched(url).page
    shown = page.evaluate("[-0.00241, 0.0583, 0.456, 0, -2.4e-5, 1234.5].map((v) => formatNumber(v))")
    assert shown == ["−0.0024", "0.058", "0.46", "0.00", "−2.4e−5", "1235"]


def test_every_label_of_a_chart_lies_inside_it(watched, url):
    page = watched(url).page
    cut = page.evaluate(
        """() => [...document.querySelectorAll('svg.chart text')].filter(t => {
            const [a, b] = [t.getBoundingClientRect(), t.closest('svg').getBoundingClientRect()];
            return a.left < b.left - 1 || a.bottom > b.bottom + 1 || a.right > b.right + 1 || a.top < b.top - 1;
        }).map(t => t.textContent)"""
    )
    assert cut == []


def test_long_commands_and_names_fit_a_phone(watched, tmp_path: Path):
    long = "/a/long/path/to/a/shared/folder/of/results/studies/" + "x" * 60
    path = tmp_path / "report.html"
    study = fake_study(2)
    path.write_text(render_page(replace(study, command=long, next_steps=((f"vtsweep report {long}", "again"),))))
    page = watched(path.as_uri()).page
    page.set_viewport_size({"width": 400, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_print_has_no_headings_of_what_is_folded(watched, url):
    page = watched(url).page
    page.emulate_media(media="print")
    assert page.locator("details:not([open]):visible").count() == 0


def test_trials_of_unknown_loss_come_last_whichever_way_is_sorted(watched, url):
    page = watched(url).page
    order = "(sign) => [NaN, 2, 1, NaN, 3].sort((a, b) => inOrderOf(a, b, sign)).map(String)"
    assert page.evaluate(order, 1) == ["1", "2", "3", "NaN", "NaN"]
    assert page.evaluate(order, -1) == ["3", "2", "1", "NaN", "NaN"]


def test_no_slider_for_places_that_no_probe_read(watched, tmp_path: Path):
    point = fake_point()
    assert point.probes is not None
    means = point.probes.filter(~pl.col("position").is_in(list(point.places)))
    path = tmp_path / "report.html"
    path.write_text(render_page(replace(fake_study(1), points=(replace(point, probes=means),))))
    page = watched(path.as_uri()).page
    assert page.locator("#probes svg.chart").count() >= 1
    assert page.locator("#probes-layer").count() == 0


def test_no_two_charts_share_a_name(watched, url):
    page = watched(url).page
    for section in SECTIONS:
        names = page.eval_on_selector_all(
            f"#{section} svg.chart", "all => all.map((e) => e.getAttribute('aria-label'))"
        )
        assert len(names) == len(set(names)), section


def test_a_heading_that_is_jumped_to_is_not_covered_by_the_links(watched, url):
    page = watched(url, reduced_motion="reduce").page
    page.click("nav a[href='#probes']")
    top = page.evaluate("document.querySelector('#probes h2').getBoundingClientRect().top")
    bar = page.evaluate("document.querySelector('nav').getBoundingClientRect().bottom")
    assert top >= bar


def test_the_first_screen_has_question_answer_and_figure(watched, url):
    page = watched(url).page
    top = page.evaluate("document.querySelector('#answer svg.chart').getBoundingClientRect().top")
    assert top < 900
    assert page.locator("#answer .answer").count() >= 1
    assert page.locator("#answer svg.chart .dot").count() > 3


def test_every_statement_has_an_address_of_its_own(watched, url):
    page = watched(url).page
    links = page.eval_on_selector_all("ul.statements a.here", "all => all.map(a => a.getAttribute('href').slice(1))")
    ids = page.eval_on_selector_all("ul.statements li", "all => all.map(li => li.id)")
    assert links == ids
    assert len(set(ids)) == len(ids)


def test_data_and_figures_can_be_saved(watched, url, tmp_path: Path):
    page = watched(url).page
    with page.expect_download() as saved:
        page.locator("#answer .save button").first.click()
    saved.value.save_as(tmp_path / "data.csv")
    assert "Ratio,mean over seeds,interval" in (tmp_path / "data.csv").read_text()
    with page.expect_download() as saved:
        page.locator("#compression .save button").nth(1).click()
    saved.value.save_as(tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert text.startswith("<svg")
    assert "var(--" not in text.split("style=")[1][:400]


def test_letters_of_charts_keep_their_size_on_a_phone(watched, url):
    page = watched(url).page
    page.set_viewport_size({"width": 400, "height": 900})
    page.wait_for_timeout(300)
    sizes = page.eval_on_selector_all(
        "#answer svg.chart, #compression svg.chart",
        "all => all.map(e => e.getBoundingClientRect().width / e.viewBox.baseVal.width)",
    )
    assert min(sizes) > 0.9


def test_up_is_more_compressed_in_every_chart_of_a_metric(watched, url):
    page = watched(url).page
    hints = page.locator("#compression svg.chart .hint").all_text_contents()
    turned = page.evaluate("Object.entries(STYLE.metrics).filter(([, m]) => m.direction < 0).length")
    assert turned > 0
    order = page.evaluate("[false, true].map((flip) => [0, 1].map(alongAxis({ flip }, 0, 1, 100, 0)))")
    assert order == [[100, 0], [0, 100]]
    assert all("↓" not in hint for hint in hints)


def test_selectors_are_grouped(watched, url):
    page = watched(url).page
    assert page.locator("#compression-metric optgroup").count() >= 2
    assert page.locator("#trials-x optgroup").count() >= 2


def test_knockout_is_bars_over_layers_with_the_whole_model_apart(watched, url):
    page = watched(url).page
    assert page.locator("#knockout svg.chart .bar").count() > 3
    assert page.locator("#knockout svg.chart", has_text="the whole model").count() >= 1


def test_several_points_are_overlaid_in_one_chart_and_can_stand_side_by_side(watched, url):
    page = watched(url).page
    charts = "#compression .panels svg.chart"
    over = page.locator(charts).count()
    assert page.locator(charts).first.locator("polyline").count() == 2
    page.select_option("#compression-lay", "beside")
    assert page.locator(charts).count() > over


def test_the_first_choice_of_a_compression_column_is_of_vision_tokens(watched, url):
    page = watched(url).page
    assert "/vision/" in page.input_value("#trials-x")
