"""Gin: search paths, parsing, and the configuration that a run leaves behind."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import gin
import jax
from absl import app, flags, logging
from etils import epath

from t5x.run import former_names, gin_errors
from t5x.run.console import console
from t5x.run.files import write_whole

_search_paths_added: set[str] = set()


@gin.configurable
def get_gin_config_str(show_provenance: bool = False) -> str:
    """The configuration as gin text, with the origin of each setting if asked for."""
    return gin.config_str(show_provenance=True) if show_provenance else gin.config_str()


def find_search_paths() -> list[str]:
    """Where gin files are looked for: packages' announced directories, then t5x's own parent.

    A distribution announces a directory by an entry point of the group `t5x.gin_search_paths` that
    names a function returning it.
    """
    announced = importlib.metadata.entry_points(group="t5x.gin_search_paths")
    paths = [str(entry_point.load()()) for entry_point in announced]
    return [*paths, str(epath.Path(__file__).parent.parent)]


def require_files(gin_search_paths: Sequence[str], gin_files: Sequence[str]) -> None:
    """Raises FileNotFoundError where a gin file is in none of the search paths."""
    for name in gin_files:
        names = (name, former_names.redirect_file(name))
        places = [epath.Path(path) / file for path in ("", *gin_search_paths) for file in names]
        if not any(place.exists() for place in places):
            raise FileNotFoundError(
                f"--gin_file={name} is in none of {', '.join(gin_search_paths)}; give its path or "
                "add its folder to --gin_search_paths"
            )


def parse_gin_flags(
    gin_search_paths: Sequence[str],
    gin_files: Sequence[str],
    gin_bindings: Sequence[str],
    skip_unknown: bool | Sequence[str] = False,
    finalize_config: bool = True,
) -> None:
    """Parses gin files, then bindings, which override them.

    Args:
      gin_search_paths: directories for relative file names, in order of preference.
      gin_files: file names; a later file overrides an earlier one.
      gin_bindings: "NAME = value" texts.
      skip_unknown: names that may be unknown, or whether all may.
      finalize_config: lock the configuration afterwards.

    Raises:
      FileNotFoundError: a file is in none of the search paths.
      ValueError: a binding is unknown; the message has the nearest name.
    """
    former_names.install()
    gin_bindings = [former_names.redirect_binding(binding) for binding in gin_bindings]
    for path in gin_search_paths:
        if path not in _search_paths_added:
            gin.add_config_file_search_path(path)
            _search_paths_added.add(path)
    require_files(gin_search_paths, gin_files)
    try:
        gin.parse_config_files_and_bindings(
            gin_files, None, skip_unknown=skip_unknown, finalize_config=False
        )
        macros = gin_errors.bound_macros()
        gin.parse_config_files_and_bindings(
            None, gin_bindings, skip_unknown=skip_unknown, finalize_config=finalize_config
        )
        text = get_gin_config_str()
    except (ValueError, AttributeError, NameError, SyntaxError) as error:
        raise ValueError(gin_errors.explain(str(error))) from error
    logging.info("gin configuration:\n%s", text)
    for line in gin_errors.describe_unused(gin_bindings, macros):
        console.say(f"note: {line}")


def rewrite_gin_args(args: Sequence[str]) -> list[str]:
    """Rewrites `--gin.NAME=VALUE` as `--gin_bindings=NAME = VALUE`.

    Raises:
      ValueError: an argument has no "=".
    """

    def rewrite(argument: str) -> str:
        if not argument.startswith("--gin."):
            return argument
        name, equals, value = argument.removeprefix("--gin.").partition("=")
        if not equals:
            raise ValueError(f"{argument}: a gin binding has the form --gin.NAME=VALUE")
        return f"--gin_bindings={name} = {value}"

    return [rewrite(argument) for argument in args]


@gin.register
def summarize_gin_config(model_dir: str, summary_writer: Any, step: int) -> None:
    """Writes the configuration to MODEL_DIR/config.gin and to TensorBoard."""
    if jax.process_index() != 0:
        return
    text = get_gin_config_str()
    directory = epath.Path(model_dir)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "config.gin", text)
    if summary_writer is not None:
        summary_writer.write_texts(step, {"config": gin.markdown(text)})
        summary_writer.flush()


def run(main: Any) -> None:
    """Parses flags, gin bindings among them, and calls `main(argv)` (upstream's entry point)."""
    app.run(main, flags_parser=lambda args: flags.FLAGS(rewrite_gin_args(args)))


@gin.configurable
def sum_fn(var1: Any = gin.REQUIRED, var2: Any = gin.REQUIRED) -> Any:
    """var1 + var2, for gin files."""
    return var1 + var2


@gin.configurable
def bool_fn(var1: Any = gin.REQUIRED) -> bool:
    """bool(var1), for gin files."""
    return bool(var1)


@gin.configurable
def string_split_fn(
    text: str = gin.REQUIRED,
    separator: str = gin.REQUIRED,
    maxsplit: int = -1,
    index: int | None = None,
) -> list[str] | str:
    """text.split(separator, maxsplit), or one of its parts, for gin files."""
    parts = text.split(separator, maxsplit)
    return parts if index is None else parts[index]
