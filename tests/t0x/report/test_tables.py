"""The terminal's table, CSV, Markdown, and the command that writes them all."""

import csv
import io

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from t0x import report
from t0x.cli.report import report as report_command


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
    for name in ("reviews", "nli"):  # whole, whatever has to make way
        assert any(line.strip().startswith(f"{name} ") for line in text.splitlines())


def test_names_are_text_in_every_form(write_task, tmp_path):
    name = "=cmd [/x] \x1b[31mred"
    step_dir = tmp_path / "exp [bold]" / "rank_classification" / "5"
    write_task(
        step_dir,
        dataset="d",
        template=name,
        category="[/x] \x1b]0;t\x07",
        inputs="<script>alert(7)",
    )
    write_task(tmp_path / "other/rank_classification/5", dataset="e", template="@t", category="-c")
    results = report.load_results([tmp_path])
    shown = render_table(results)
    assert "exp [bold]" in shown and "[/x]" in shown
    assert "\x07" not in shown
    csv_file = tmp_path / "prompts.csv"
    report.write_prompts_csv(results, csv_file)
    rows = list(csv.DictReader(csv_file.open(newline="")))
    assert {row["template"] for row in rows} == {f"'{name}", "'@t"}
    assert {row["category"] for row in rows} == {"[/x] \x1b]0;t\x07", "'-c"}
    page = tmp_path / "page.html"
    report.write_html(results, page)
    text = page.read_text()
    assert "exp [bold]" in text
    assert "&lt;script&gt;alert(7)" in text and "<script>alert(7)" not in text


def test_skipped_rows_are_printed_and_empty_tasks_left_out(write_task, tmp_path):
    step_dir = tmp_path / "rank_classification" / "5"
    write_task(step_dir, skipped={"renders empty": 3, "no [field] x": 1})
    write_task(step_dir, template="none", correct=0, wrong=0, skipped={"renders empty": 9})
    results = report.load_results([tmp_path])
    text = render_table(results)
    assert "4 rows skipped (3 × renders empty; 1 × no [field] x)" in text
    assert "reviews__none_score_eval: no example was scored" in text
    assert [summary.prompts for summary in report.summarise(results)] == [1]


def test_two_checkpoints_stand_side_by_side(write_task, tmp_path):
    for step, correct in ((100, 4), (200, 8)):
        step_dir = tmp_path / "model" / "rank_classification" / str(step)
        write_task(step_dir, correct=correct, wrong=10 - correct)
    results = report.load_results([tmp_path])
    lines = [line.split() for line in render_table(results).splitlines()]
    assert ["reviews", "sentiment", "model", "100", "1", "40.0", "40.0–40.0", "50.0"] in lines
    assert ["model", "200", "1", "80.0", "80.0–80.0", "50.0"] in lines


def test_results_without_a_step_are_read(write_task, tmp_path):
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


def test_markdown_keeps_its_columns_whatever_the_names(write_task, run, tmp_path):
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


def test_bias_and_comparison_reach_csv_and_markdown(write_task, tmp_path):
    step_dir = tmp_path / "m" / "rank_classification" / "5"
    write_task(step_dir, dataset="crows_pairs", correct=3, wrong=7)
    write_task(step_dir, dataset="super_glue", subset="rte", seen="held-out dataset")
    results = report.load_results([tmp_path])
    report.write_bias_csv(results, tmp_path / "bias.csv")
    (row,) = csv.DictReader((tmp_path / "bias.csv").open())
    assert (row["dataset"], row["measure"], row["mean"]) == ("crows_pairs", "accuracy", "0.3")
    report.write_markdown(results, tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    assert "| CrowS-Pairs | accuracy | rank classification | 1 | 30.0 | 30.0 |" in text
    assert "| super\\_glue/rte | 60.0 | 60.0 |" in text and "80.8" in text


def test_csv_has_agreement_and_confidence_and_empty_cells_where_there_is_none(write_task, tmp_path):
    step_dir = tmp_path / "m" / "rank_classification" / "5"
    for dataset, template in (("a", "one"), ("a", "other"), ("b", "alone")):
        write_task(step_dir, dataset=dataset, template=template)
    report.write_csv(report.load_results([tmp_path]), tmp_path / "d.csv")
    several, alone = csv.DictReader((tmp_path / "d.csv").open())
    # Both prompts always say "good": they agree, and chance alone leaves nothing to exceed.
    assert (several["agreement"], several["kappa"]) == ("1.0", "")
    assert (alone["agreement"], alone["kappa"]) == ("", "")
    assert float(alone["confidence"]) == pytest.approx(0.731, abs=1e-3)


def test_a_full_disk_leaves_the_former_report(run, full_disk, commands):
    names = {"--out": "r.html", "--csv": "d.csv", "--prompts_csv": "p.csv", "--markdown": "r.md"}
    for name in names.values():
        (full_disk / name).write_text("the former one")
    with pytest.raises(OSError, match="No space"), (full_disk / "filler").open("wb") as file:
        file.write(b"x" * 2_000_000)
    for option, name in names.items():
        done = commands.run("t0x", "report", run, option, full_disk / name, ok=False)
        assert done.stderr.startswith("error: ")
        assert f"No space left on device: '{full_disk}/{name}'" in done.stderr
        assert (full_disk / name).read_text() == "the former one"
    assert {path.name for path in full_disk.iterdir()} == {"filler", *names.values()}
