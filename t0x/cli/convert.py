"""`t0x convert`: models between Hugging Face's layout and checkpoints."""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from t0x.cli import shared

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def convert(
    paths: Annotated[
        list[str], typer.Argument(metavar="SRC... DST", help="What to read; what to write, last.")
    ],
    average: Annotated[
        bool, typer.Option("--average", help="Write the mean of several checkpoints.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: as it is.")
    ] = None,
    step: Annotated[
        int, typer.Option(min=0, help="Step of the checkpoint made from a Hugging Face directory.")
    ] = 0,
    scanned: Annotated[
        bool,
        typer.Option("--scanned", help="Stack the layers. Models read either layout."),
    ] = False,
    max_file_size: Annotated[
        str, typer.Option("--max_file_size", help="Of a safetensors file, e.g. 500MB.")
    ] = "5GB",
    vocabulary: Annotated[
        str | None, typer.Option(help="SentencePiece model to make the tokenizer from.")
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow_pickle", help="Read pytorch_model.bin, by torch's safe loader."),
    ] = False,
    allow_non_finite: Annotated[
        bool,
        typer.Option(
            "--allow_non_finite", help="Take weights that are NaN or infinite, or become it."
        ),
    ] = False,
) -> None:
    """Convert a T5 v1.1 model; which way, SRC decides. One array is in memory at a time.

    t0x convert bigscience/T0_3B runs/t0_3b          a local directory with config.json
    t0x convert runs/t0_mini/checkpoint_1400 my_model
    t0x convert --average run/checkpoint_1 run/checkpoint_2 runs/mean
    """
    import numpy as np

    from t5x.checkpoints import convert as conversion
    from t5x.checkpoints.formats.stores import find_format

    *sources, destination = paths
    if not sources or (len(sources) > 1 and not average):
        raise ValueError("t0x convert takes SRC and DST; give --average to average several SRC")
    for source in sources:
        _require_model(source)
    common = {"allow_non_finite": allow_non_finite, "track": _track}
    kind = np.dtype(_dtype(dtype)) if dtype else None
    if average:
        summary = conversion.average(sources, destination, dtype=kind, **common)
    elif find_format(sources[0]) == "huggingface":
        from t5x.checkpoints.convert.pickled import PickledTensors

        summary = conversion.import_model(
            sources[0],
            destination,
            step=step,
            dtype=kind,
            scanned=scanned,
            open_pickled=PickledTensors if allow_pickle else None,
            **common,
        )
    else:
        summary = conversion.export_model(
            sources[0],
            destination,
            dtype=kind,
            max_file_bytes=_bytes(max_file_size),
            vocabulary=vocabulary,
            **common,
        )
    count = f"{summary.parameters:,} parameters in {summary.arrays} arrays"
    shared.echo(f"wrote {summary.path}: {count}")
    for note in summary.notes:
        shared.echo(note)


def _require_model(path: str) -> None:
    from t5x.checkpoints.directories import latest_step
    from t5x.checkpoints.formats.stores import LEGACY_FILE, find_format

    is_file_of_legacy = path.endswith(f"/{LEGACY_FILE}")
    if not is_file_of_legacy and find_format(path) is None and latest_step(path) is None:
        raise FileNotFoundError(
            f"{path} is no checkpoint, no MODEL_DIR with checkpoints and no Hugging Face directory "
            "(config.json beside model.safetensors); a model of the hub is to be downloaded first: "
            "hf download NAME --local-dir DIR"
        )


def _track(items: Sequence[Any]) -> Iterable[Any]:
    from rich.progress import track

    from t5x.run.terminal import make_console

    console = make_console(stderr=True)
    return track(
        items, "converting", console=console, transient=True, disable=not console.is_terminal
    )


def _dtype(name: str) -> Any:
    import ml_dtypes

    names = {"float32": "float32", "float16": "float16", "bfloat16": ml_dtypes.bfloat16}
    if name not in names:
        raise ValueError(f"--dtype {name}: choose from {', '.join(names)}")
    return names[name]


def _bytes(size: str) -> int:
    match = re.fullmatch(r"(\d+)(KB|MB|GB|)", size)
    if match is None:
        raise ValueError(f"--max_file_size {size}: write a number and KB, MB or GB, e.g. 500MB")
    return int(match[1]) * _UNITS[match[2]]
