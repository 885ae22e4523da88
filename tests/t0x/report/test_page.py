"""The HTML page: well formed, self-contained, bounded, and true to the figures."""

import json
import sys
from html.parser import HTMLParser

import pytest

from t0x import report
from t0x.report.charts import clean_svg, draw_panels
from t0x.report.page import write_html
from t0x.report.prompt_table import SHOWN_CHARACTERS, cut_example, describe_prompts
from t0x.report.published import compare
from t0x.results.format import Example

HOSTILE = '<script>alert("x")</script> & <img src=http://evil.example/a.png onerror=alert(1)> ```'


class Page(HTMLParser):
    """Checks that tags nest and collects what a browser would load."""

    VOID = frozenset({"meta", "input", "wbr", "br"})

    def __init__(self, html):
        super().__init__()
        self.open, self.loads, self.tags, self.ids, self.texts = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "action", "poster") or "href" in name:
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)
            assert not name.startswith("on")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_page_is_well_formed_and_self_contained(run, tmp_path):
    write_html(report.load_results([run]), tmp_path / "report.html", unfinished=2)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.loads and all(target.startswith("#") for target in page.loads)
    assert {target[1:] for target in page.loads} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    for loader in ("://", "@import", "url(", "<link", "<iframe", "fetch("):
        assert loader not in html
    assert page.tags.count("svg") == 2  # A panel a dataset.
    assert page.tags.count("article") == 34  # Every wrong one is shown.
    assert "2 tasks left out" in html.replace("</strong>", "")
    text = "".join(page.texts)
    assert "35.0–40.0" in text and "57.5–82.5" in text


def test_page_bounds_what_it_embeds_and_says_so(write_task, run, tmp_path):
    step_dir = run / "inference_eval" / "rank_classification" / "1000"
    write_task(step_dir, template="long", inputs="x" * 5000, correct=0, wrong=30)
    write_html(report.load_results([run], wrong_examples=4), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "4 of 30 wrong predictions shown" in html
    assert "x" * SHOWN_CHARACTERS in html and "x" * (SHOWN_CHARACTERS + 1) not in html
    assert "more characters" in html


def test_hostile_text_stays_text(write_task, tmp_path):
    step_dir = tmp_path / "<b>run" / "rank_classification" / "5"
    write_task(
        step_dir,
        dataset=HOSTILE,
        template=HOSTILE + "'",
        category=HOSTILE,
        inputs=HOSTILE,
        choices=(HOSTILE, HOSTILE + "{{ 7 * 7 }}"),
        split=HOSTILE,
        skipped={HOSTILE: 1},
    )
    write_html(report.load_results([tmp_path]), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert page.tags.count("script") == 1 and "img" not in page.tags and "b" in page.tags
    assert all(target.startswith("#") for target in page.loads)
    assert HOSTILE in "".join(page.texts) and "{{ 7 * 7 }}" in html


def test_charts_draw_the_summaries_own_figures(run):
    panels = draw_panels(report.summarise(report.load_results([run])))
    assert [(panel.name, panel.group) for panel in panels] == [
        ("reviews", "seen"),
        ("nli", "held-out dataset"),
    ]
    assert panels[0].svg.count("<title>") == 5  # One point a prompt, held-out one included.
    assert "prompt 2: 80.0 %" in panels[0].svg and ">70.0<" in panels[0].svg
    assert "median 70.0 %, quartiles 57.5 to 82.5 %" in panels[0].svg
    assert "var(--held-prompt)" in panels[0].svg and "var(--held-dataset)" in panels[1].svg


def test_clean_svg_keeps_titles_and_drops_namespaces():
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" version="1.1"><g role="x"><path d=""/>'
        '<path d="M0,0h1" aria-roledescription="point" aria-label="a &lt; b"/></g></svg>'
    )
    assert clean_svg(svg, 'says "so"') == (
        '<svg role="img" aria-label="says &quot;so&quot;"><g>'
        '<path d="M0,0h1"><title>a &lt; b</title></path></g></svg>'
    )


def test_prompt_anchors_are_unique(run):
    prompts = describe_prompts(report.summarise(report.load_results([run])))
    assert len({prompt.anchor for prompt in prompts}) == 8
    assert [prompt.dataset for prompt in prompts] == ["reviews"] * 5 + ["nli"] * 3


def test_without_altair_one_line_names_the_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    results = report.load_results([run])
    with pytest.raises(ModuleNotFoundError, match=r"pip install 't0x\[report\]'"):
        write_html(results, tmp_path / "report.html")
    report.write_markdown(results, tmp_path / "r.md")  # Needs no plots.


def write_known(write_task, step_dir, correct=8):
    """RTE and StoryCloze, which others published results on."""
    for dataset, subset in (("super_glue", "rte"), ("story_cloze", "2016")):
        write_task(
            step_dir,
            dataset=dataset,
            subset=subset,
            seen="held-out dataset",
            correct=correct,
            wrong=10 - correct,
        )


def test_published_figures_stand_beside_ones_own(write_task, run, tmp_path):
    step_dir = run / "inference_eval" / "rank_classification" / "1000"
    write_known(write_task, step_dir)
    results = report.load_results([run])
    comparison = compare(report.summarise(results), report.load_published())
    assert [row.name for row in comparison.rows] == ["story_cloze/2016", "super_glue/rte"]
    (column,) = [place for place, name in enumerate(comparison.models) if name == ("T0", "mean")]
    assert [row.theirs[column] and row.theirs[column].accuracy for row in comparison.rows] == [
        None,
        pytest.approx(0.8083),
    ]
    write_html(results, tmp_path / "r.html")
    text = "".join(Page((tmp_path / "r.html").read_text()).texts)
    assert "80.8" in text and "83.2" in text and "arXiv 2110.08207" in text
    # Figures that nobody could read are missed aloud; models stand together, in the file's order.
    assert comparison.missing == ("T0+", "T0++")
    assert "Not here: T0+, T0++, of which no figure for these datasets was at hand." in text
    assert [model for model, _ in comparison.columns][:3] == ["T0", "GPT-3 175B", "T0, run again"]
    assert [model for model, _ in comparison.models] == [
        model for model, statistics in comparison.columns for _ in statistics
    ]


def test_two_checkpoints_show_what_changed(write_task, tmp_path):
    for step, correct in ((100, 4), (200, 9)):
        write_known(write_task, tmp_path / "m" / "rank_classification" / str(step), correct)
    results = report.load_results([tmp_path])
    comparison = compare(report.summarise(results), [])
    assert comparison.checkpoints == (("m", 100), ("m", 200)) and comparison.models == ()
    write_html(results, tmp_path / "r.html", published=[])
    page = Page((tmp_path / "r.html").read_text())
    assert "+50.0" in page.texts and "step 200" in page.texts
    header = [text for text in page.texts[: page.texts.index("Datasets")] if text.strip()]
    assert [header[header.index(step) + 1] for step in ("100", "200")] == ["40.0", "90.0"]
    assert not any("same datasets" in text for text in header)


def test_checkpoints_need_not_have_a_dataset_in_common(write_task, tmp_path):
    write_task(tmp_path / "a" / "rank_classification" / "1", dataset="x", correct=7, wrong=3)
    held_out = {"dataset": "y", "seen": "held-out dataset"}
    write_task(tmp_path / "b" / "rank_classification" / "1", correct=2, wrong=8, **held_out)
    report.write_html(report.load_results([tmp_path]), tmp_path / "r.html")
    texts = Page((tmp_path / "r.html").read_text()).texts
    header = [text for text in texts[: texts.index("Datasets")] if text.strip()]
    assert header[header.index("a") + 2 :][:2] == ["70.0", "–"]
    assert header[header.index("b") + 2 :][:2] == ["–", "20.0"]
    assert any("not evaluated on the same datasets" in text for text in header)


def test_nothing_to_compare_leaves_the_section_out(run, tmp_path):
    results = report.load_results([run])
    assert compare(report.summarise(results), report.load_published()) is None
    write_html(results, tmp_path / "r.html")
    assert 'id="comparison"' not in (tmp_path / "r.html").read_text()


def test_every_published_figure_has_a_source_and_occurs_once():
    figures = report.load_published()
    keys = [(f.model, f.dataset, f.subset, f.statistic) for f in figures]
    assert len(set(keys)) == len(keys) > 20
    assert {f.statistic for f in figures} <= {"mean", "median", "zero-shot"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model,dataset\nT0,x\n", "no column subset; it needs model, dataset, subset"),
        ("HEAD\nT0,x,,mean,high,here\n", "published.csv:2: accuracy is 'high'"),
        ("HEAD\nT0,x,,mean,101,here\n", "published.csv:2: accuracy is '101'"),
        ("HEAD\nT0,x,,mean,50,\n", "published.csv:2: column source is empty"),
    ],
)
def test_a_published_file_of_ones_own_is_checked(tmp_path, text, expected):
    file = tmp_path / "published.csv"
    file.write_text(text.replace("HEAD", "model,dataset,subset,statistic,accuracy,source"))
    with pytest.raises(ValueError, match=expected):
        report.load_published(file)


def test_wrong_predictions_share_a_budget_evenly(run):
    summaries = report.summarise(report.load_results([run]))
    size = 250 + len("A fine film. 0") + 2 * 154
    prompts = describe_prompts(summaries, budget=13 * size)
    counts = [len(prompt.wrong) for prompt in prompts]
    assert sum(counts) in (12, 13) and max(counts) - min(counts) <= 1
    assert [len(prompt.wrong) for prompt in describe_prompts(summaries)] == [
        min(10, prompt.result.wrong_total) for prompt in prompts
    ]


def test_of_many_choices_the_best_and_the_label_are_shown():
    scores = tuple(-float(place) for place in range(40))
    example = Example(0, "which?", tuple(f"c{n}" for n in range(40)), scores, 0, 39)
    shown = cut_example(example)
    assert [choice.text for choice in shown.choices] == [*(f"c{n}" for n in range(11)), "c39"]
    assert shown.more_choices == 28 and shown.choices[-1].right and shown.choices[0].given


def test_every_table_has_a_caption_and_every_column_a_scope(write_task, run, tmp_path):
    write_known(write_task, run / "inference_eval" / "rank_classification" / "1000")
    write_html(report.load_results([run]), tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    page = Page(html)
    assert page.tags.count("caption") == page.tags.count("table")
    assert "<th>" not in html and "prefers-color-scheme" in html and ":focus-visible" in html


def test_an_evaluation_of_the_papers_size_stays_small(tmp_path):
    """11 datasets × 10 prompts × 300 examples of about 1,100 characters."""
    step_dir = tmp_path / "t0" / "rank_classification" / "12200"
    step_dir.mkdir(parents=True)
    text = "The quick brown fox jumps over the lazy dog. " * 24
    for dataset in range(11):
        for prompt in range(10):
            lines = (
                f'{{"idx": {row}, "inputs": "{row}: {text}", "choices": ["Yes", "No"], '
                f'"scores": [-1.5, -{1 + row % 3}.0], "prediction": {int(row % 3 == 0)}, '
                f'"label": {row * prompt % 2}}}\n'
                for row in range(300)
            )
            name = f"d{dataset}_p{prompt}_score_eval"
            (step_dir / f"{name}.jsonl").write_text("".join(lines))
            right = sum(int(row % 3 == 0) == row * prompt % 2 for row in range(300))
            summary = {"task": name, "dataset": f"d{dataset}", "subset": None, "step": 12200}
            summary |= {"template": f"p{prompt}", "category": "NLI", "split": "validation"}
            summary |= {"seen": "held-out dataset", "examples": 300, "accuracy": right / 300}
            summary |= {"chance": 0.5, "skipped": {}}
            (step_dir / f"{name}.json").write_text(json.dumps(summary))
    results = report.load_results([tmp_path], wrong_examples=300)
    write_html(results, tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    wrong = sum(result.wrong_total for result in results)
    shown = html.count("<article>")
    assert 1000 < shown < wrong and f"{shown:,} of {wrong:,} are on this page" in html
    assert len(html.encode()) < 10e6
