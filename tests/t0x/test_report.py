"""The report on hand-written results: statistics, tables, files and the HTML page."""

import csv
import io
import json
import math
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from t0x import report
from t0x.cli.report import report as report_command
from t0x.report.charts import clean_svg, draw_panels
from t0x.report.page import SHOWN_CHARACTERS, describe_prompts, write_html
from t0x.report.summary import average_groups, collect_notes, find_skew, share_labels

HOSTILE = '<script>alert("x")</script> & <img src=http://evil.example/a.png onerror=alert(1)> ```'


def write_task(
    step_dir,
    *,
    dataset="reviews",
    template="plain",
    subset=None,
    seen="seen",
    category="sentiment",
    correct=6,
    wrong=4,
    choices=("bad", "good"),
    inputs="A fine film.",
    scores=(-1.5, -0.5),
    split="validation",
    **fields,
):
    """Writes one finished task whose every example predicts the last choice."""
    step_dir.mkdir(parents=True, exist_ok=True)
    task = f"{dataset}_{subset or ''}_{template}_score_eval".replace("/", "_")
    last = len(choices) - 1
    lines = [
        {
            "idx": index,
            "inputs": f"{inputs} {index}",
            "choices": list(choices),
            "scores": list(scores),
            "prediction": last,
            "label": last if index < correct else 0,
        }
        for index in range(correct + wrong)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (step_dir / f"{task}.jsonl").write_text(text, encoding="utf-8")
    summary = {
        "task": task,
        "dataset": dataset,
        "subset": subset,
        "template": template,
        "category": category,
        "seen": seen,
        "examples": len(lines),
        "accuracy": correct / len(lines) if lines else None,
        "chance": 1 / len(choices),
        "skipped": {},
        "step": int(step_dir.name),
        "split": split,
    }
    file = step_dir / f"{task}.json"
    file.write_text(json.dumps(summary | fields), encoding="utf-8")
    return file


@pytest.fixture
def run(tmp_path):
    """A run with a seen dataset of four prompts, its held-out prompt and a held-out dataset."""
    step_dir = tmp_path / "t0_mini" / "inference_eval" / "rank_classification" / "1000"
    for index, correct in enumerate((5, 6, 8, 9)):
        write_task(step_dir, template=f"prompt {index}", correct=correct, wrong=10 - correct)
    write_task(step_dir, template="unseen", seen="held-out prompt", correct=7, wrong=3)
    for index, correct in enumerate((3, 4, 4)):
        write_task(
            step_dir,
            dataset="nli",
            template=f"way {index}",
            seen="held-out dataset",
            category="natural language inference",
            correct=correct,
            wrong=10 - correct,
            choices=("no", "maybe", "yes"),
            scores=(-3.0, -2.0, -1.0),
        )
    return tmp_path / "t0_mini"


def test_loads_run_and_step_from_the_path(run):
    results = report.load_results([run])
    assert len(results) == 8
    assert {(result.run, result.step) for result in results} == {("t0_mini", 1000)}
    assert report.load_results([run / "inference_eval" / "rank_classification" / "1000"]) == results
    assert report.load_results([run, run / "inference_eval"]) == results, (
        "found once, however named"
    )


def test_keeps_the_first_wrong_predictions_and_counts_all(run):
    result = report.load_results([run], wrong_examples=2)[0]
    assert (result.dataset, result.wrong_total, len(result.wrong)) == ("nli", 7, 2)
    assert [example.idx for example in result.wrong] == [3, 4]
    assert result.correct + result.wrong_total == result.examples


def test_groups_follow_seen_then_held_out_prompts_then_held_out_datasets(run):
    summaries = report.summarise(report.load_results([run]))
    assert [(item.name, item.seen, item.prompts) for item in summaries] == [
        ("reviews", "seen", 4),
        ("reviews", "held-out prompt", 1),
        ("nli", "held-out dataset", 3),
    ]
    assert summaries[0].median == pytest.approx(0.7)
    assert (summaries[0].q1, summaries[0].q3) == pytest.approx((0.575, 0.825))
    assert summaries[2].chance == pytest.approx(1 / 3)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=12))
def test_statistics_equal_numpy_for_any_prompts(tmp_path_factory, counts):
    step_dir = tmp_path_factory.mktemp("run") / "rank_classification" / "7"
    for index, correct in enumerate(counts):
        write_task(step_dir, template=f"p{index}", correct=correct, wrong=20 - correct)
    results = report.load_results([step_dir.parent.parent])
    (summary,) = report.summarise(results)
    accuracies = np.array(counts) / 20
    assert summary.median == pytest.approx(np.median(accuracies))
    assert summary.q1 == pytest.approx(np.quantile(accuracies, 0.25))
    assert summary.q3 == pytest.approx(np.quantile(accuracies, 0.75))
    assert (summary.minimum, summary.maximum) == (accuracies.min(), accuracies.max())
    assert average_groups([summary])[0].median == pytest.approx(summary.median)


def test_a_dataset_with_several_splits_is_not_mixed(tmp_path):
    step_dir = tmp_path / "a" / "rank_classification" / "1"
    for split, correct in (("dev_r1", 3), ("dev_r2", 7)):
        write_task(step_dir, dataset="anli", template=split, correct=correct, wrong=3, split=split)
    summaries = report.summarise(report.load_results([tmp_path]))
    assert [(item.name, item.median) for item in summaries] == [
        ("anli/dev_r1", 0.5),
        ("anli/dev_r2", 0.7),
    ]


def test_wilson_interval_against_published_values():
    # R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3.
    assert report.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert report.wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert report.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert report.wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    with pytest.raises(ValueError, match="3/2"):
        report.wilson_interval(3, 2)


@given(st.integers(1, 10_000), st.data())
def test_wilson_interval_contains_the_rate(examples, data):
    correct = data.draw(st.integers(0, examples))
    low, high = report.wilson_interval(correct, examples)
    assert 0 <= low <= correct / examples + 1e-12
    assert correct / examples - 1e-12 <= high <= 1


def test_labels_far_from_predictions_are_named(tmp_path):
    step_dir = tmp_path / "a" / "rank_classification" / "1"
    write_task(step_dir, correct=5, wrong=5)  # Always says "good", which is right half the time.
    write_task(step_dir, template="even", correct=9, wrong=1)
    skewed, even = sorted(report.load_results([tmp_path]), key=lambda result: result.accuracy)
    shares = share_labels(skewed)
    assert [(share.name, share.true, share.predicted) for share in shares] == [
        ("bad", 0.5, 0.0),
        ("good", 0.5, 1.0),
    ]
    assert find_skew(shares).name == "good"
    assert find_skew(share_labels(even)) is None


def test_varying_choices_are_counted_by_position(tmp_path):
    step_dir = tmp_path / "rank_classification" / "1"
    file = write_task(step_dir, correct=2, wrong=0).with_suffix(".jsonl")
    first, second = map(json.loads, file.read_text().splitlines())
    second["choices"] = ["left", "right"]
    file.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    (result,) = report.load_results([tmp_path])
    assert [share.name for share in share_labels(result)] == ["choice 1", "choice 2"]


def test_near_ties_and_scores_that_are_not_finite_are_counted(tmp_path):
    step_dir = tmp_path / "rank_classification" / "1"
    write_task(step_dir, template="tie", scores=(-1.001, -1.0))
    write_task(step_dir, template="nan", scores=(math.nan, -1.0))
    by_template = {result.template: result for result in report.load_results([tmp_path])}
    assert by_template["tie"].near_ties == 10 and by_template["tie"].not_finite == 0
    assert by_template["nan"].not_finite == 10 and by_template["nan"].near_ties == 0
    assert any(
        "10 examples with scores that are not finite" in n
        for n in collect_notes([*by_template.values()])
    )


def tear_line(file):
    examples = file.with_suffix(".jsonl")
    examples.write_text(examples.read_text()[:-20])
    return r"_score_eval\.jsonl:10: torn line"


def drop_line(file):
    examples = file.with_suffix(".jsonl")
    examples.write_text("".join(examples.read_text().splitlines(keepends=True)[:-1]))
    return r"_score_eval\.jsonl: holds 9 examples, .*\.json says 10"


def drop_examples(file):
    file.with_suffix(".jsonl").unlink()
    return r"_score_eval\.jsonl: missing"


def tear_summary(file):
    file.write_text(file.read_text()[:30])
    return r"_score_eval\.json: not valid JSON"


def replace_in_summary(**fields):
    def spoil(file):
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))
        return rf"_score_eval\.json: field '{next(iter(fields))}'"

    return spoil


def replace_in_examples(**fields):
    def spoil(file):
        examples = file.with_suffix(".jsonl")
        lines = examples.read_text().splitlines()
        lines[2] = json.dumps(json.loads(lines[2]) | fields)
        examples.write_text("\n".join(lines) + "\n")
        return r"_score_eval\.jsonl:3: "

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        tear_line,
        drop_line,
        drop_examples,
        tear_summary,
        replace_in_summary(accuracy=60.0),
        replace_in_summary(accuracy=0.9),
        replace_in_summary(seen="perhaps"),
        replace_in_summary(skipped=3),
        replace_in_summary(examples=True),
        replace_in_examples(label=2),
        replace_in_examples(prediction=None),
        replace_in_examples(scores=[-1.0]),
        replace_in_examples(scores=["low", "high"]),
        replace_in_examples(choices=[1, 2]),
    ],
)
def test_bad_results_end_in_one_line_naming_the_file(tmp_path, spoil):
    file = write_task(tmp_path / "rank_classification" / "5")
    expected = spoil(file)
    with pytest.raises(ValueError, match=expected) as caught:
        report.load_results([tmp_path])
    assert "\n" not in str(caught.value)


def test_missing_and_empty_directories_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        report.load_results([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="no results below it"):
        report.load_results([tmp_path])
    (tmp_path / "rank_classification" / "5").mkdir(parents=True)
    with pytest.raises(ValueError, match="no finished task"):
        report.load_results([tmp_path])


def test_unfinished_tasks_are_found_not_counted(run):
    step_dir = run / "inference_eval" / "rank_classification" / "1000"
    (step_dir / "half_score_eval.jsonl").write_text('{"idx": 0, "inp')
    assert len(report.load_results([run])) == 8
    assert [file.stem for file in report.find_unfinished([run])] == ["half_score_eval"]


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    for parent in ("one", "two"):
        write_task(tmp_path / parent / "model" / "rank_classification" / "5")
    results = report.load_results([tmp_path / "one", tmp_path / "two"])
    assert [result.run for result in results] == ["one/model", "two/model"]


def render_table(results, **options):
    stream = io.StringIO()
    report.print_table(results, Console(file=stream, **options))
    return stream.getvalue()


def test_piped_table_is_whole_and_grouped(run):
    text = render_table(report.load_results([run]))
    lines = [line.split("  ") for line in text.splitlines()]
    words = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert ["reviews", "sentiment", "4", "70.0", "57.5–82.5", "50.0"] in words
    assert ["nli", "natural language inference", "3", "40.0", "35.0–40.0", "33.3"] in words
    assert ["mean", "3", "40.0", "33.3"] in words
    headings = [text.index(name) for name in ("Seen", "Held-out prompts", "Held-out datasets")]
    assert headings == sorted(headings)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_terminal_table_never_cuts_a_figure(run, width):
    text = render_table(
        report.load_results([run]), force_terminal=True, width=width, color_system=None
    )
    assert max(map(len, text.split("Accuracy in %")[0].splitlines())) <= width
    if width >= 60:
        assert "57.5–82.5" in text and "35.0–40.0" in text
    assert "…" not in text


def test_skipped_rows_are_printed_and_empty_tasks_left_out(tmp_path):
    step_dir = tmp_path / "rank_classification" / "5"
    write_task(step_dir, skipped={"renders empty": 3, "no [field] x": 1})
    write_task(step_dir, template="none", correct=0, wrong=0, skipped={"renders empty": 9})
    results = report.load_results([tmp_path])
    text = render_table(results)
    assert "4 rows skipped (3 × renders empty; 1 × no [field] x)" in text
    assert "reviews__none_score_eval: no example was scored" in text
    assert [summary.prompts for summary in report.summarise(results)] == [1]


def test_two_checkpoints_stand_side_by_side(tmp_path):
    for step, correct in ((100, 4), (200, 8)):
        step_dir = tmp_path / "model" / "rank_classification" / str(step)
        write_task(step_dir, correct=correct, wrong=10 - correct)
    results = report.load_results([tmp_path])
    lines = [line.split() for line in render_table(results).splitlines()]
    assert ["reviews", "sentiment", "model", "100", "1", "40.0", "40.0–40.0", "50.0"] in lines
    assert ["model", "200", "1", "80.0", "80.0–80.0", "50.0"] in lines


def test_results_without_a_step_are_read(tmp_path):
    write_task(tmp_path / "model" / "rank_classification" / "-1")
    write_task(tmp_path / "model" / "rank_classification" / "1200")
    results = report.load_results([tmp_path])
    assert [result.step for result in results] == [-1, 1200]
    words = render_table(results).split()
    assert "none" in words and "1,200" in words


def test_csv_files_hold_full_figures(run, tmp_path):
    results = report.load_results([run])
    report.write_csv(results, tmp_path / "datasets.csv")
    report.write_prompts_csv(results, tmp_path / "prompts.csv")
    datasets = list(csv.DictReader((tmp_path / "datasets.csv").open()))
    assert [row["dataset"] for row in datasets] == ["reviews", "reviews", "nli"]
    assert float(datasets[2]["chance"]) == 1 / 3
    assert float(datasets[0]["q1"]) == pytest.approx(0.575)
    prompts = list(csv.DictReader((tmp_path / "prompts.csv").open()))
    assert len(prompts) == 8
    row = next(row for row in prompts if row["template"] == "unseen")
    low, high = report.wilson_interval(7, 10)
    assert (row["seen"], row["correct"], row["accuracy"]) == ("held-out prompt", "7", "0.7")
    assert (float(row["ci95_low"]), float(row["ci95_high"])) == (low, high)


def test_markdown_keeps_its_columns_whatever_the_names(run, tmp_path):
    step_dir = run / "inference_eval" / "rank_classification" / "1000"
    write_task(step_dir, template="a | b\n<script>*", category="odd|one")
    report.write_markdown(report.load_results([run]), tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    assert (
        "| nli | natural language inference | held-out dataset | 3 | 40.0 | 35.0–40.0 | 33.3 |"
        in text
    )
    assert "**mean of 1**" in text and r"a \| b \<script\>\*" in text
    for block in text.split("\n\n"):
        rows = [line.replace(r"\|", "") for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1


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


def test_page_bounds_what_it_embeds_and_says_so(run, tmp_path):
    step_dir = run / "inference_eval" / "rank_classification" / "1000"
    write_task(step_dir, template="long", inputs="x" * 5000, correct=0, wrong=30)
    write_html(report.load_results([run], wrong_examples=4), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "4 of 30 wrong predictions shown" in html
    assert "x" * SHOWN_CHARACTERS in html and "x" * (SHOWN_CHARACTERS + 1) not in html
    assert "more characters" in html


def test_hostile_text_stays_text(tmp_path):
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


def test_command_writes_what_is_asked_for(run, tmp_path):
    app = typer.Typer()
    app.command()(report_command)
    step_dir = run / "inference_eval" / "rank_classification" / "1000"
    (step_dir / "half_score_eval.jsonl").write_text("{")
    out = tmp_path / "new" / "report.html"
    arguments = [str(run), "--out", str(out), "--csv", str(tmp_path / "d.csv")]
    arguments += ["--prompts_csv", str(tmp_path / "p.csv"), "--markdown", str(tmp_path / "r.md")]
    result = CliRunner().invoke(app, [*arguments, "--wrong", "1"])
    assert result.exit_code == 0, result.output
    assert "1 unfinished and left out: half_score_eval" in result.output
    assert "57.5–82.5" in result.output and f"wrote {out}" in result.output
    assert all(
        path.stat().st_size
        for path in (out, *(tmp_path / name for name in ("d.csv", "p.csv", "r.md")))
    )
    assert "1 of 5 wrong predictions shown" in out.read_text()
