"""docs/new_task.md followed to the letter: its files written, its commands run, in their order."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/new_task.md"
# One device, unlike the other tests, as whoever follows the page has.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# "`FILE`:" and the block after it, or a block of commands.
BLOCK = re.compile(r"(?:^`([\w./]+)`:\n\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read_page():
    """("file", name, text) and ("command", line, "") in the order of the page."""
    for name, language, text in BLOCK.findall(PAGE.read_text()):
        if language == "console":
            yield from (("command", line.removeprefix("$ "), "") for line in text.splitlines())
        elif name:
            yield "file", name, text


def test_the_page_has_what_this_test_needs():
    steps = list(read_page())
    assert [kind for kind, *_ in steps].count("file") == 9
    commands = [what for kind, what, _ in steps if kind == "command"]
    assert [command.split()[1] for command in commands[:2]] == ["prompts", "prompts"]
    assert [c.split()[2] for c in commands if c.startswith("python -m")] == [
        "t5x.train",
        "t5x.eval",
    ]


@pytest.mark.slow
def test_following_the_page_registers_trains_and_evaluates(commands, tmp_path):
    environment = {
        **{name: "" for name in os.environ if name.startswith("T0X_")},
        "T0X_CACHE_DIR": str(tmp_path / "cache"),
        "XLA_FLAGS": QUICK_COMPILATION,
    }
    printed = {}
    for kind, what, text in read_page():
        if kind == "file":
            path = tmp_path / what
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            continue
        command = shlex.split(what.removeprefix("python -m "))
        printed[what] = commands.run(*command, cwd=tmp_path, environment=environment).stdout
    output = "\n".join(printed.values())
    assert "2 templates, 0 errors, 0 warnings" in output
    assert "weather_train (2 tasks)" in output and "now at step 20" in output
    results = tmp_path / "runs/weather/inference_eval/rank_classification/20"
    found = json.loads((results / "weather_umbrella_score_eval.json").read_text())
    assert (found["dataset"], found["template"], found["examples"]) == ("weather", "umbrella", 2)
    assert not (results / "weather_write_the_report_score_eval.json").exists()
    (listed,) = (text for command, text in printed.items() if "more_prompts" in command)
    assert "49 tasks" in listed and "mini_news_front_page" in listed
