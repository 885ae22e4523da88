"""Installing, listing, rendering, checking and starting prompts, through the command line."""

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from t0x.cli.prompts import app
from t0x.prompts import authoring
from t0x.prompts.collection import TemplateCollection
from t0x.prompts.files import read_templates
from t0x.prompts.install import index_url, install

GOLDEN = Path(__file__).parents[1] / "golden/templates.yaml"
FILE = """
dataset: birds
templates:
  id1: !Template
    answer_choices: no ||| yes
    id: id1
    jinja: "Does {{bird}} fly? ||| {{answer_choices[label]}}"
    metadata: !TemplateMetadata
      choices_in_prompt: false
      metrics: [Accuracy]
      original_task: true
    name: fly
    reference: ''
  id2: !Template
    answer_choices: null
    id: id2
    jinja: "Describe {{bird}}. ||| {{text}}"
    metadata: !TemplateMetadata {}
    name: describe
    reference: ''
"""
ROWS = [
    {"bird": "the kiwi", "label": 0, "text": "Small ||| brown."},
    {"bird": "the swift", "label": 1, "text": "Dark é."},
]


@pytest.fixture(autouse=True)
def birds(tmp_path, monkeypatch):
    """A collection with one dataset, rows for it, an empty cache and no network."""
    folder = tmp_path / "collection/birds"
    folder.mkdir(parents=True)
    (folder / "templates.yaml").write_text(FILE)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.setenv("T0X_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("T0X_PROMPTS_DIR", str(tmp_path / "collection"))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def make_archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("p-1/promptsource/templates/link/templates.yaml")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Path:
    """An archive of promptsource's layout with more in it than template files."""
    content = make_archive(
        {
            "p-1/promptsource/templates/imdb/templates.yaml": FILE.encode(),
            "p-1/promptsource/templates/glue/mrpc/templates.yaml": FILE.encode(),
            "p-1/promptsource/templates/../../../evil/templates.yaml": FILE.encode(),
            "/p-1/promptsource/templates/root/templates.yaml": FILE.encode(),
            "p-1/promptsource/templates.py": b"raise SystemExit",
            "p-1/setup.py": b"raise SystemExit",
        }
    )
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(content)
    monkeypatch.setattr("t0x.prompts.install.ARCHIVE_SHA256", hashlib.sha256(content).hexdigest())
    return path


def test_install_unpacks_only_template_files(archive, tmp_path):
    result = run("install", "--archive", str(archive))
    assert result.exit_code == 0
    assert "4 templates of 2 datasets installed in" in result.stdout
    found = sorted(p.relative_to(tmp_path / "cache").as_posix() for p in _files(tmp_path / "cache"))
    assert found == [
        "prompts/.installed.json",
        "prompts/glue/mrpc/templates.yaml",
        "prompts/imdb/templates.yaml",
    ]
    assert not (tmp_path / "evil").exists()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def test_install_again_does_nothing_and_force_replaces(archive, tmp_path):
    directory, new = install(archive)
    assert new
    kept = directory / "imdb/templates.yaml"
    kept.write_text(FILE.replace("fly", "swim"))
    assert install() == (directory, False)  # needs no network
    assert "swim" in kept.read_text()
    assert install(archive, force=True) == (directory, True)
    assert "swim" not in kept.read_text()
    assert [path.name for path in directory.parent.iterdir() if path.name.startswith(".")] == []


def test_install_leaves_a_foreign_folder_alone(archive, tmp_path):
    (tmp_path / "cache/prompts").mkdir(parents=True)
    (tmp_path / "cache/prompts/mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="--force"):
        install(archive)
    assert (tmp_path / "cache/prompts/mine.txt").exists()


def test_install_refuses_another_archive(archive, tmp_path):
    archive.write_bytes(archive.read_bytes() + b"x")
    with pytest.raises(ValueError, match="SHA-256"):
        install(archive)
    assert not (tmp_path / "cache").exists()


def test_install_offline_says_what_to_do():
    command = [sys.executable, "-c", "from t0x.cli import main; main()", "prompts", "install"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: cannot get promptsource-0.2.3.tar.gz from http://127.0.0.1:9")
    assert "--archive" in line


def test_index_is_the_one_pip_uses(monkeypatch, tmp_path):
    assert index_url() == "http://127.0.0.1:9/simple"
    monkeypatch.delenv("PIP_INDEX_URL")
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip/pip.conf").write_text("[global]\nindex-url = http://mirror/simple\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert index_url() == "http://mirror/simple"


def test_list_as_json_keeps_the_contract():
    result = run("list", "birds", "--json")
    assert json.loads(result.stdout) == [
        {
            "dataset": "birds",
            "subset": None,
            "name": "describe",
            "fixed_answer_choices": None,
            "has_answer_choices": False,
            "original_task": None,
            "choices_in_prompt": None,
            "metrics": [],
        },
        {
            "dataset": "birds",
            "subset": None,
            "name": "fly",
            "fixed_answer_choices": ["no", "yes"],
            "has_answer_choices": True,
            "original_task": True,
            "choices_in_prompt": False,
            "metrics": ["Accuracy"],
        },
    ]
    assert len(json.loads(run("list", "--json").stdout)) > 2  # with t0x's own


def test_list_and_show_as_text():
    assert "no | yes" in run("list", "birds").stdout
    shown = run("show", "birds", "--template", "fly", "--rows", "rows.jsonl").stdout
    assert "{{answer_choices[label]}}" in shown
    assert "Does the kiwi fly?" in shown
    assert "Describe" not in shown


def test_render_gives_one_line_a_row():
    lines = run("render", "birds", "--template", "describe", "--rows", "rows.jsonl").stdout
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"parts": ["Describe the kiwi.", "Small ||| brown."], "answer_choices": None},
        {"parts": ["Describe the swift.", "Dark é."], "answer_choices": None},
    ]
    lines = run("render", "birds", "--template", "fly", "--rows", "rows.jsonl").stdout
    assert json.loads(lines.splitlines()[1]) == {
        "parts": ["Does the swift fly?", "yes"],
        "answer_choices": ["no", "yes"],
    }


def test_render_marks_the_rows_that_fail_and_goes_on(tmp_path):
    bad = [{"bird": 1, "label": {}}, *ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in bad))
    text = FILE.replace("answer_choices[label]", "answer_choices[label].strip()")
    (tmp_path / "collection/birds/templates.yaml").write_text(text)
    result = run("render", "birds", "--template", "fly", "--rows", "rows.jsonl")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 3
    assert lines[0]["parts"] is lines[0]["answer_choices"] is None
    assert "template 'fly'" in lines[0]["error"]
    assert lines[2]["parts"] == ["Does the swift fly?", "yes"]
    assert result.exit_code == 1
    assert "1 of 3 rows did not render" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("render", "birds", "--template", "swim", "--rows", "rows.jsonl"),
            "it has: describe, fly",
        ),
        (("render", "bird", "--template", "fly", "--rows", "rows.jsonl"), "did you mean birds"),
        (("render", "birds", "--template", "fly", "--rows", "none.jsonl"), "no such file"),
        (
            ("render", "birds", "--template", "fly", "--rows", "bad.jsonl"),
            "bad.jsonl: 1 line is no row: line 2 (a list, not an object)",
        ),
        (("validate", "nowhere"), "nowhere"),
        (("new", "../birds"), "no dataset name"),
    ],
)
def test_bad_arguments_give_one_line(arguments, message, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"bird": "x", "label": 0}\n[]\n')
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in str(result.exception)


def check(text: str, tmp_path: Path, *rows: dict) -> tuple[int, str]:
    (tmp_path / "checked").mkdir(exist_ok=True)
    (tmp_path / "checked/templates.yaml").write_text(text)
    (tmp_path / "given.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    result = run("validate", "checked", *(["--rows", "given.jsonl"] if rows else []))
    return result.exit_code, result.stdout


def test_validate_accepts_good_files(tmp_path):
    assert check(FILE, tmp_path, *ROWS) == (0, "2 templates, 0 errors, 0 warnings\n")
    assert run("validate", str(GOLDEN)).exit_code == 1  # it has faulty templates on purpose


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("templates:", "templates: [", "while parsing"),
        ("!Template\n", "!!python/name:os.system\n", "could not determine a constructor"),
        ("{{bird}}", "{% if %}", "template 'fly': jinja: line 1"),
        ("no ||| yes", "no ||| {{yes", "template 'fly': answer_choices: line 1"),
        ("fly? |||", "fly?", "template 'fly': answer choices but no target"),
        ("{{bird}}. |||", "{{bird}}", "template 'describe': no ||| between input and target"),
        ("name: describe", "name: fly", "template 'fly': another template has this name"),
        ('jinja: "Desc', 'jinja: [1]\n    x: "Desc', "field jinja is [1]"),
    ],
)
def test_validate_finds(old, new, message, tmp_path):
    assert old in FILE
    code, output = check(FILE.replace(old, new), tmp_path)
    assert code == 1
    assert "error: checked/templates.yaml: " in output
    assert message in output


@pytest.mark.parametrize(
    ("rows", "level", "message"),
    [
        ([{"bird": "x", "label": 1}], "error", "'describe': no row has the field text"),
        (
            [ROWS[0], {**ROWS[0], "label": 7}],
            "warning",
            "target is empty (1 of 2 rows, first row 2: label = 7; the choices are ['no', 'yes'])",
        ),
        ([ROWS[0], {**ROWS[0], "answer_choices": 1}], "error", "does not render: the row has"),
        ([{**ROWS[0], "bird": " "}], "ok", "0 errors, 0 warnings"),
    ],
)
def test_validate_on_rows_finds(rows, level, message, tmp_path):
    code, output = check(FILE, tmp_path, *rows)
    assert code == (level == "error")
    assert message in output
    if level != "ok":
        assert f"{level}: checked/templates.yaml: template " in output


def test_validate_on_rows_counts_parts_and_choices(tmp_path):
    text = FILE.replace("{{answer_choices[label]}}", "{{text}}")
    code, output = check(text, tmp_path, *ROWS)
    assert code == 1
    found = "the target is none of the answer choices (2 of 2 rows, first row 1: 'Small ||| brown.'"
    assert f"'fly': {found} of ['no', 'yes'])" in output
    text = FILE.replace("||| {{text}}", "{% if label %}||| a ||| b{% endif %}")
    code, output = check(text, tmp_path, *ROWS)
    assert code == 1
    assert "'describe': renders to 1 parts, not input ||| target (1 of 2 rows" in output
    assert "'describe': renders to 3 parts" in output


def test_new_file_is_valid_and_found(tmp_path):
    result = run("new", "fish/river", "--out", "mine", "--rows", "rows.jsonl")
    assert result.exit_code == 0
    path = tmp_path / "mine/fish/river/templates.yaml"
    templates = read_templates(path)
    assert list(templates) == ["choices", "question"]
    assert "{{ bird }}" in templates["question"].jinja
    assert run("validate", "mine", "--rows", "rows.jsonl").exit_code == 0
    assert TemplateCollection([tmp_path / "mine"]).datasets() == [("fish", "river")]
    assert "!Template\n" in path.read_text()
    assert yaml.compose(path.read_text()) is not None
    again = run("new", "fish/river", "--out", "mine")
    assert again.exit_code == 1
    assert "exists" in str(again.exception)


@pytest.mark.parametrize("command", ["install", "list", "show", "render", "validate", "new"])
def test_help_has_an_example(command):
    output = run(command, "--help").stdout
    assert f"t0x prompts {command}" in output


def test_commands_of_the_documentation_run(tmp_path):
    page = (Path(__file__).parents[3] / "docs/prompts.md").read_text()
    (rows,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "rows.jsonl").write_text(rows)
    (template,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "shown.yaml").write_text(template)
    assert run("validate", "shown.yaml").exit_code == 0
    commands = re.findall(r"^\$ t0x prompts (.+)$", page, re.MULTILINE)
    assert {command.split()[0] for command in commands} == {
        "install", "list", "show", "render", "new", "validate",
    }  # fmt: skip
    for command in commands:
        if command != "install":
            result = run(*command.split())
            assert result.exit_code == 0 and result.stdout, f"{command}: {result.exception}"


ODD_FIELDS = {"Review Text": "fine", "2nd": "a", "é-ü": 1, "if": "x", "a.b": 2, "": 3, "food-id": 1}


def test_new_prompts_work_for_fields_of_any_name(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ODD_FIELDS) + "\n")
    sample = list(authoring.read_rows(rows))
    assert list(sample[0]) == ["Review_Text", "_2nd", "é_ü", "if_", "a_b", "_", "food_id"]
    path = authoring.create("odd", tmp_path, list(sample[0]))
    count, findings = authoring.validate(path, sample)
    assert (count, findings) == (2, [])
    choices = authoring.parse_templates(path.read_bytes(), "x")
    texts = [template.apply(sample[0]) for template in choices]
    assert all("Review_Text: fine" in parts[0] for parts in texts)


def file_of(tmp_path, folder, *names, choices="a ||| b"):
    (tmp_path / folder).mkdir(parents=True)
    entries = "".join(
        f"  id{i}: !Template\n    name: {json.dumps(name)}\n    jinja: x ||| a\n"
        f"    answer_choices: {choices}\n"
        for i, name in enumerate(names)
    )
    (tmp_path / folder / "templates.yaml").write_text(f"templates:\n{entries}")


@pytest.mark.parametrize(
    ("files", "task"),
    [
        ({"d": ["a b", "a-b"]}, "d_a_b"),
        ({"d": ["ask", "ask_score_eval"]}, "d_ask_score_eval"),
        ({"d/e": ["x"], "d_e": ["x"]}, "d_e_x"),
    ],
)
def test_prompts_that_would_be_one_task_are_found(tmp_path, files, task):
    for folder, names in files.items():
        file_of(tmp_path, folder, *names)
    _, findings = authoring.validate(tmp_path)
    assert [finding.level for finding in findings][:1] == ["error"]
    assert f"its task is called {task}, and so is one of template" in findings[0].text
