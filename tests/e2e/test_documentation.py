"""What README.md and docs/ tell readers to type: run at a tiny size, or held against what there is.

docs/new_task.md has a test of its own, which follows it to the letter.
"""

import functools
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
import typer.main

from t0x import cli

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
PROGRAMS = r"(?:t0x|python|make|pip|git|export) "
FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"\s{2,}#.*")
ONE_DEVICE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

TASK = "mini_reviews_options_first"
TINY = [
    *(f"--gin.T5Config.num_{stack}_layers=1" for stack in ("encoder", "decoder")),
    *(f"--gin.T5Config.{name}=32" for name in ("emb_dim", "mlp_dim")),
]
TRAIN = [*TINY, f"--gin.MIXTURE_OR_TASK_NAME='{TASK}'", "--gin.TRAIN_STEPS=2"]
EVALUATE = [*TINY, f"--gin.MIXTURE_OR_TASK_NAME='{TASK}_score_eval'"]
TEMPLATES = """
dataset: ag_news
templates:
  1: !Template
    id: '1'
    name: classify
    reference: ''
    jinja: "{{text}} Which section? ||| {{answer_choices[label]}}"
    answer_choices: Politics ||| Sports
    metadata: !TemplateMetadata
      original_task: true
      choices_in_prompt: false
      metrics: [Accuracy]
      languages: [en]
"""


def fenced_commands(page):
    """Commands of a page's blocks, in their order."""
    for block in FENCED.findall((ROOT / page).read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            line = COMMENT.sub("", line.removeprefix("$ "))
            if re.match(PROGRAMS, line):
                yield line


def inline_commands(page):
    """Commands within a page's sentences and tables."""
    text = FENCED.sub("", (ROOT / page).read_text())
    for words in re.findall(rf"`({PROGRAMS}[^`]+)`", text):
        yield " ".join(words.split())


COMMANDS = [
    pytest.param(command, id=f"{page}: {command}")
    for page in PAGES
    for command in dict.fromkeys([*fenced_commands(page), *inline_commands(page)])
]


@functools.cache
def t5x_flags():
    """Names of t5x's flags."""
    from absl import flags

    from t5x import cli as t5x_cli

    known = set(flags.FLAGS)
    t5x_cli.define_flags()
    defined = set(flags.FLAGS) - known
    for name in defined:
        delattr(flags.FLAGS, name)
    return defined | {"run_mode"}


def check_t0x(words):
    """The command is there, and its options are."""
    command, context = typer.main.get_command(cli.app), None
    for number, word in enumerate(words):
        if not hasattr(command, "commands"):
            break
        context = typer.Context(command, context, **command.context_settings)
        several = word.split("|")
        assert all(name in command.commands for name in several), f"no command {word}"
        command, rest = command.commands[several[0]], words[number + 1 :]
    else:
        return
    defined = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    if command.context_settings.get("ignore_unknown_options"):
        defined |= {f"--{name}" for name in t5x_flags()}
    for word in rest:
        assert not word.startswith("--") or word.partition("=")[0] in defined, f"no option {word}"


def check_t5x(words):
    """The flags are there, and so are the gin files."""
    for word in words:
        name, _, value = word.strip("[]").removeprefix("--").partition("=")
        if word.startswith("--") and not name.startswith("gin."):
            assert name in t5x_flags(), f"no flag {word}"
        if name == "gin_file" and value not in ("FILE", "weather.gin", "eval_weather.gin"):
            assert (ROOT / "gin" / value).exists() or (ROOT / value).exists(), f"no {value}"


def check_pytest(words):
    """The file of tests is there, and tests of the names asked for."""
    path = ROOT / words[0]
    assert path.exists(), f"no {path}"
    if "-k" in words:
        names = " ".join(re.findall(r"def (test_\w+)", path.read_text()))
        for word in words[words.index("-k") + 1].split():
            assert word == "or" or word in names, f"{path} has no test of {word}"


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_names_is_there(command):
    words = shlex.split(command)
    match words:
        case ["t0x", *rest]:
            check_t0x(rest)
        case ["python", "-m", "pytest", *rest]:
            check_pytest(rest)
        case ["python", "-m", module, *rest]:
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), f"no {module}"
            check_t5x(rest)
        case ["python", script, *_]:
            assert (ROOT / script).exists(), f"no {script}"
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["pip", "install", what]:
            extras = re.findall(r"\[(\w+)\]", what)
            assert all(f'"{extra}":' in (ROOT / "setup.py").read_text() for extra in extras)
        case ["git", "clone", *_] | ["export", _]:
            pass
        case _:
            pytest.fail(f"this test does not know what to make of {command}")


@pytest.fixture(scope="module")
def run(commands, tmp_path_factory):
    """Runs a command of a page in a folder of its own, with what the pages take for given."""
    folder = tmp_path_factory.mktemp("reader")
    environment = {
        "T0X_CACHE_DIR": str(folder / "cache"),
        "T0X_PROMPTS_DIR": str(folder / "prompts_of_mine"),
        "T0X_DATA_DIR": "",
        "XLA_FLAGS": ONE_DEVICE,
    }

    def run(*words):
        return commands.run(*words, cwd=folder, environment=environment).stdout

    run.folder = folder
    return run


def follow(run, page, substitutions, prepare):
    """Runs a page's commands in their order, as `substitutions` says; returns what they print.

    Args:
      substitutions: command → words to run in its place, or more words at its end where they begin
        with an option; None for commands that are only read.
      prepare: command → what to do before it.
    """
    printed = {}
    for command in fenced_commands(page):
        if command in substitutions and substitutions[command] is None:
            continue
        words = shlex.split(command)
        more = substitutions.get(command, [])
        words = [*words, *more] if not more or more[0].startswith("--") else more
        if command in prepare:
            prepare[command]()
        words = words[2:] if words[:2] == ["python", "-m"] else words
        printed[command] = run(*words)
    return printed


@pytest.mark.slow
def test_the_readmes_commands(run):
    folder = run.folder
    (folder / "prompts_of_mine/ag_news").mkdir(parents=True)
    for place in ("prompts_of_mine/ag_news/templates.yaml", "my_templates.yaml"):
        (folder / place).write_text(TEMPLATES)
    (folder / "rows.jsonl").write_text('{"text": "A late goal.", "label": 1}\n')
    (folder / "questions.jsonl").write_text('{"inputs": "Well?", "choices": ["yes", "no"]}\n')

    def export():
        """A Hugging Face directory to convert from."""
        run("t0x", "convert", "runs/t0_mini", "HF_DIRECTORY")

    def remove_exported():
        shutil.rmtree(folder / "HF_DIRECTORY")

    def copy_runs():
        for name in ("a", "b"):
            shutil.copytree(folder / "runs/t0_mini", folder / "runs" / name)

    unread = [
        "git clone … t0x && cd t0x",
        *("make demo", "make test", "export T0X_DATA_DIR=/path/to/data"),
        # From the network, with data or prompts of others, for clusters, or for minutes.
        "t0x prompts install",
        "python -m t5x.train --gin_file=t0_small_real.gin",
        "python -m t5x.eval --gin_file=eval_t0_small_real.gin",
        "t0x report runs/t0_small_real",
        """python -m t5x.train --gin_file=t0pp.gin --gin.MODEL_DIR='"gs://BUCKET/t0pp"'""",
        """python -m t5x.eval --gin_file=eval_t0.gin --gin.MODEL_DIR='"gs://BUCKET/t0pp"'""",
        "t0x plan --gin_file t0_3b.gin --topology v5e:16x16 --price 1.2",
        "t0x tasks list --mixture t0_train",
    ]
    select = "t0x select --mixture mini_score_eval --module t0x.tasks.mini runs/t0_mini"
    to_checkpoint = "t0x convert HF_DIRECTORY runs/t0_3b"
    back, compare = (
        "t0x convert runs/t0_3b HF_DIRECTORY",
        "t0x report runs/a runs/b --out report.html --bias_csv bias.csv",
    )
    printed = follow(
        run,
        "README.md",
        {
            **dict.fromkeys(unread),
            "python -m t5x.train --gin_file=t0_mini.gin": TRAIN,
            "python -m t5x.eval --gin_file=eval_t0_mini.gin": EVALUATE,
            select: ["--common"],  # one task was evaluated
        },
        {to_checkpoint: export, back: remove_exported, compare: copy_runs},
    )
    assert set(unread) <= set(fenced_commands("README.md")), "gone from the page: take it off"
    assert len(printed) == 13
    assert "best: runs/t0_mini/checkpoint_2" in printed[select]
    assert (folder / "HF_DIRECTORY/model.safetensors").exists()
    assert '"prediction"' in (folder / "scored.jsonl").read_text()
    assert "mini/reviews" in printed[compare]


@pytest.mark.slow
def test_the_commands_on_prompts(run):
    (run.folder / "rows.jsonl").write_text('{"text": "A late goal.", "label": 1}\n')
    printed = follow(run, "docs/prompts.md", {"t0x prompts install": None}, {})
    assert len(printed) == 9
    render = "t0x prompts render mini/news --template choose_topic --rows rows.jsonl"
    assert "A late goal." in printed[render]


def test_the_commands_that_launch(run):
    page = "docs/launch.md"
    (job,) = re.findall(
        r"^```yaml\n(# t0-3b\.yaml\n.*?)^```", (ROOT / page).read_text(), re.M | re.S
    )
    (run.folder / "t0-3b.yaml").write_text(job)
    launches = [c for c in inline_commands(page) if c.startswith("t0x launch ")]
    assert len(launches) == 5
    for command in launches:
        assert "t5x.train" in run(*shlex.split(command), "--dry_run"), command
