"""The `t0x` command as a whole: how options are spelled, and what its start loads."""

import re
import subprocess
import sys

import pytest
import typer.main
import typer.testing

from t0x import cli

ROOT = typer.main.get_command(cli.app)


def walk(command, context=None, name="t0x"):
    """(words, command, its context) of every command there is."""
    context = typer.Context(command, context, name, **command.context_settings)
    yield name, command, context
    for word, child in getattr(command, "commands", {}).items():
        yield from walk(child, context, f"{name} {word}")


COMMANDS = list(walk(ROOT))
OPTIONS = [
    pytest.param(command, context, option, id=f"{words} {option.opts[0]}")
    for words, command, context in COMMANDS
    for option in command.params
    if option.param_type_name == "option" and option.name != "help"
]


def test_all_commands_are_walked():
    words = {words for words, _, _ in COMMANDS}
    assert {"t0x plan", "t0x score", "t0x launch gke", "t0x prompts list"} <= words
    assert len(OPTIONS) > 90


@pytest.mark.parametrize(("command", "context", "option"), OPTIONS)
def test_an_option_has_underscores_and_takes_hyphens(command, context, option):
    defined = [*option.opts, *option.secondary_opts]
    assert all(re.fullmatch(r"--[a-z0-9]+(_[a-z0-9]+)*", name) for name in defined), defined
    for name in defined:
        for spelling in (name, f"--{name[2:].replace('_', '-')}"):
            value = [] if option.is_flag else ["7"]
            found, rest, _ = command.make_parser(context).parse_args([spelling, *value])
            given = found[option.name]
            assert given in ("7", ["7"]) if value else given == (name in option.opts), spelling
            assert not rest


def test_bindings_are_given_as_to_t5x():
    words = ["launch", "gke", "--name", "a", "--gin-file", "b.gin", "--model-dir", "c", "--dry-run"]
    given = ["--gin.BATCH_SIZE=8", "--gin_bindings", "A='x=y'", "--gin-bindings=B = 2"]
    done = typer.testing.CliRunner().invoke(cli.app, [*words, *given])
    assert done.exception is None, done.output
    for binding in ("--gin.BATCH_SIZE=8", "--gin.A='x=y'", "--gin.B = 2"):
        assert binding in done.stdout.replace("'\"'\"'", "'"), done.stdout


def test_help_loads_nothing_heavy():
    heavy = "{'jax', 'numpy', 'tensorflow', 'seqio', 'gin', 'yaml', 'orbax'}"
    code = (
        "import sys; from t0x import cli; sys.argv = ['t0x', '--help']\n"
        "try: cli.main()\n"
        f"finally: print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "checkpoints" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
