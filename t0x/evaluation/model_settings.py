"""What a checkpoint's own config.gin says of its model, read as data.

gin with dynamic registration imports what a file names and calls it: right for a file of the user's
own, wrong for one that came with a checkpoint. Of such a file only macros and the statements about
`PARTS` count, they may name nothing else, and what it includes must be a file of the installed
packages, of which the same holds. All else in it is left out.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gin import config_parser

from t5x.checkpoints.formats.huggingface import MOST_LAYERS, MOST_OF_AN_AXIS
from t5x.run.former_names import MODULES

LARGEST_FILE = 1 << 20  # bytes
# What may be bound and named: module, and what of it.
PARTS = {
    "t5x.examples.t5.network": {"T5Config", "Transformer"},
    "t5x.examples.scalable_t5.network": {"T5Config", "Transformer"},
    "t5x.models": {"EncoderDecoderModel"},
    "t5x.decoding": {"beam_search", "temperature_sample"},
    "seqio": {"SentencePieceVocabulary", "ByteVocabulary", "PassThroughVocabulary"},
    "t0x.vocabulary": {"t5_vocabulary"},
    "t0x.tasks.mini": {"vocabulary"},
}
# Each is called `network` where it is bound, so a file has one of them.
_NETWORKS = ("t5x.examples.t5.network", "t5x.examples.scalable_t5.network")
_UNUSED = {"optimizer_def"}  # an optimizer is for training
# Numbers of T5Config, and the most that they may be.
SIZES = {
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), MOST_LAYERS),
    **dict.fromkeys(("emb_dim", "mlp_dim", "head_dim", "num_heads", "vocab_size"), MOST_OF_AN_AXIS),
}
_DEEPEST_INCLUDE = 8


class _Named(str):
    """A macro, or a reference to one of PARTS, as gin writes it."""

    __repr__ = str.__str__


class _Reader(config_parser.ParserDelegate):
    """Makes texts of macros and references; `foreign` are those that no statement may have."""

    def __init__(self, dropped: set[str]) -> None:
        self.modules: dict[str, str] = {}  # by the names that the file gives them
        self.foreign: list[str] = []
        self._dropped = dropped

    def configurable_reference(self, scoped_name: str, evaluate: bool) -> _Named:
        name = self.find(scoped_name)
        if name is None:
            self.foreign.append(f"@{scoped_name}")
        return _Named(f"@{name}{'()' if evaluate else ''}")

    def macro(self, macro_name: str) -> _Named:
        if macro_name in self._dropped:
            self.foreign.append(f"%{macro_name}")
        return _Named(f"%{macro_name}")

    def find(self, selector: str) -> str | None:
        """Name of one of PARTS, as `_import` binds it; None for anything else."""
        bound, _, name = selector.rpartition(".")
        # Unimported, it is what an included file has imported.
        ours = [module for module in PARTS if f".{module}".endswith(f".{bound}")]
        module = self.modules.get(bound, ours[0] if ours else "")
        return f"{_bound_name(module)}.{name}" if name in PARTS.get(module, ()) else None


def read_model(path: str, packages: Sequence[str], text: str | None = None) -> str:
    """gin text of the model in a checkpoint's own configuration.

    Args:
      path: of the file.
      packages: directories of the gin files that it may include.
      text: its content, if it is not to be read from `path`.

    Raises:
      ValueError: the file is no gin, or what it says of the model names other things; one line with
        file and statement.
    """
    values: dict[str, Any] = {}
    imported: set[str] = set()
    text = _read(path) if text is None else text
    _collect(path, text, packages, values, set(), imported, 0)
    networks = [module for module in _NETWORKS if module in imported] or [_NETWORKS[0]]
    if len(networks) > 1:
        raise ValueError(
            f"{path} imports both {' and '.join(networks)}; give the model's gin file by --gin_file"
        )
    for name, most in SIZES.items():
        value = values.get(f"network.T5Config.{name}", 1)
        if isinstance(value, _Named):
            value = values.get(value[1:], value)
        if type(value) is not int or not 0 < value <= most:
            raise ValueError(f"{path}: {name} = {value!r:.40} is not from 1 to {most:,}")
    vocabulary = str(values.get("seqio.SentencePieceVocabulary.sentencepiece_model_file", ""))
    if os.path.exists(vocabulary) and not os.path.isfile(vocabulary):
        raise ValueError(f"{path}: sentencepiece_model_file {vocabulary!r} is no file")
    modules = sorted(PARTS.keys() - set(_NETWORKS) | set(networks))
    lines = ["from __gin__ import dynamic_registration", *map(_import, modules)]
    lines += [f"{name} = {value!r}" for name, value in values.items()]
    return "\n".join([*lines, "models.EncoderDecoderModel.optimizer_def = None\n"])


def _read(path: str) -> str:
    if not os.path.isfile(path) or os.path.getsize(path) > LARGEST_FILE:
        raise ValueError(f"{path} is no file of at most {LARGEST_FILE:,} bytes")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from error


def _collect(
    path: str,
    text: str,
    packages: Sequence[str],
    values: dict[str, Any],
    dropped: set[str],
    imported: set[str],
    depth: int,
) -> None:
    """Adds what a file binds to `values`, by gin name, later statements overriding earlier ones.

    The modules that it imports are added to `imported`, macros of foreign things to `dropped`.
    """
    reader = _Reader(dropped)
    for statement in _statements(path, text, reader):
        place = f"{path}:{statement.location.line_num}"
        foreign, reader.foreign = reader.foreign, []
        if isinstance(statement, config_parser.ImportStatement):
            module = statement.module
            name = module.rpartition(".")[2] if statement.is_from else module
            reader.modules[statement.alias or name] = MODULES.get(module, module)
            imported.add(MODULES.get(module, module))
        elif isinstance(statement, config_parser.IncludeStatement):
            included = _find_included(statement.filename, packages)
            if included is None or depth == _DEEPEST_INCLUDE:
                raise ValueError(
                    f"{place}: include {statement.filename!r:.99} is no file of the installed "
                    "packages; give the model's gin file by --gin_file"
                )
            text = _read(included)
            _collect(included, text, packages, values, dropped, imported, depth + 1)
        elif isinstance(statement, config_parser.BindingStatement) and not statement.scope:
            _bind(statement, foreign, reader, values, dropped, place)


def _statements(path: str, text: str, reader: _Reader) -> Iterator[Any]:
    statements = config_parser.ConfigParser(text, reader)
    while True:
        try:
            statement = next(statements, None)
        except (SyntaxError, RecursionError, MemoryError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is no gin: {' '.join(str(error).split())[:150]}") from error
        if statement is None:
            return
        yield statement


def _bind(
    statement: config_parser.BindingStatement,
    foreign: list[str],
    reader: _Reader,
    values: dict[str, Any],
    dropped: set[str],
    place: str,
) -> None:
    if not statement.arg_name:  # a macro; of no use to the model, unless the model says that it is
        (dropped.add if foreign else dropped.discard)(statement.selector)
        if foreign:
            values.pop(statement.selector, None)
        elif re.fullmatch(r"\w+", statement.selector):
            values[statement.selector] = statement.value
        return
    part = reader.find(statement.selector)
    if part is None or statement.arg_name in _UNUSED:
        return
    if foreign:
        raise ValueError(
            f"{place}: {statement.selector}.{statement.arg_name} names {', '.join(foreign)[:99]}, "
            "which a checkpoint's own configuration may not; give the model's by --gin_file"
        )
    values[f"{part}.{statement.arg_name}"] = statement.value


def _find_included(name: str, packages: Sequence[str]) -> str | None:
    for package in map(os.path.realpath, packages):
        file = os.path.realpath(os.path.join(package, name))
        if file.startswith(package + os.sep) and os.path.isfile(file):
            return file
    return None


def _bound_name(module: str) -> str:
    return module.rpartition(".")[2]


def _import(module: str) -> str:
    package, _, name = module.rpartition(".")
    return f"from {package} import {name}" if package else f"import {name}"
