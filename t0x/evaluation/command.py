"""Rank-scores any JSONL file of {"inputs", "choices"} with a checkpoint: `t0x score`.

What the checkpoint's own configuration, or a given one, says of model and vocabulary is all that is
needed; `t0x.evaluation.file` is how a file is read, scored and gone on with.
"""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import seqio
from etils import epath

from t0x import rank_classification
from t0x.evaluation import encoding, fingerprints, model_settings, packing
from t0x.evaluation.file import BAD_ROWS_SHOWN, Ledger, score_file
from t0x.evaluation.scorer import Scorer
from t5x import gin_utils, models, partitioning, train_state, utils
from t5x.checkpoints.directories import find_single, get_checkpoint_dir, latest_step
from t5x.run import settings
from t5x.run.console import console

# Register tasks, which scoring takes no part in.
TASK_MODULES = ("t0x.tasks.p3",)
DEFAULT_LIMITS = {"inputs": 1024, "targets": 256}


@dataclass(frozen=True)
class Setup:
    """What a configuration says of scoring.

    Attributes:
      model: the model.
      partitioner: shards it; one partition where the checkpoint's own configuration is used.
      limits: most tokens of inputs and of a choice.
    """

    model: models.EncoderDecoderModel
    partitioner: partitioning.PjitPartitioner
    limits: dict[str, int | None]


def find_checkpoint(path: str) -> str:
    """A checkpoint: the path itself, or the newest one in it.

    Raises:
      FileNotFoundError: there is none.
    """
    path = path.rstrip("/")
    if not os.path.exists(path) and "://" not in path:
        raise FileNotFoundError(f"--checkpoint {path}: no such directory")
    if single := find_single(path):
        return single
    step = latest_step(path)
    return path if step is None else str(get_checkpoint_dir(path, step))


def read_setup(checkpoint: str, gin_files: Sequence[str], bindings: Sequence[str]) -> Setup:
    """Parses the run's configuration: the given gin files, or the one beside the checkpoint.

    Raises:
      FileNotFoundError: no gin file is given and none lies beside the checkpoint.
      ValueError: the configuration has no MODEL, or the checkpoint's own names what it may not.
    """
    beside = epath.Path(checkpoint).parent / "config.gin"
    if not gin_files and not beside.exists():
        raise FileNotFoundError(
            f"--checkpoint {checkpoint}: there is no {beside}, which training leaves; give the "
            "model by --gin_file"
        )
    with tempfile.TemporaryDirectory() as scratch:
        files = gin_files
        if not gin_files:  # it came with the checkpoint: data, not code
            own = Path(scratch) / "config.gin"
            own.write_text(_own_model(beside), encoding="utf-8")
            files = [str(own)]
        settings.read(files, ["DROPOUT_RATE = 0.0", *bindings], without=TASK_MODULES)
    known = settings.macros()
    if "MODEL" not in known:
        raise ValueError(
            f"{', '.join(gin_files) or beside}: there is no MODEL; give a model's gin file by "
            "--gin_file, like t5x/examples/t5/t5_1_1/small.gin"
        )
    mesh: dict[str, Any] = {}
    if not gin_files and not any("num_partitions" in binding for binding in bindings):
        # The run's mesh is not this machine's.
        mesh = {"num_partitions": 1, "model_parallel_submesh": None}
    has_limits = "TASK_FEATURE_LENGTHS" in known
    return Setup(
        model=settings.macro("MODEL"),
        partitioner=settings.configured(partitioning.PjitPartitioner)(**mesh),
        limits=(settings.macro("TASK_FEATURE_LENGTHS") if has_limits else None) or DEFAULT_LIMITS,
    )


def _own_model(file: epath.Path) -> str:
    """gin text of the model in a checkpoint's own configuration."""
    text = file.read_text() if "://" in str(file) else None
    return model_settings.read_model(str(file), gin_utils.find_search_paths(), text)


def restore(setup: Setup, checkpoint: str) -> tuple[train_state.TrainState, train_state.TrainState]:
    """The checkpoint's parameters, and how they are sharded."""
    features = packing.pack([], 8, 8).features
    initializer = utils.TrainStateInitializer(
        optimizer_def=None,
        init_fn=setup.model.get_initial_variables,
        input_shapes={name: (1, *array.shape[1:]) for name, array in features.items()},
        partitioner=setup.partitioner,
    )
    config = utils.RestoreCheckpointConfig(checkpoint, mode="specific", strict=False)
    state, manager = utils.create_checkpoint_manager_and_restore(
        initializer, setup.partitioner, config, checkpoint, None
    )
    manager.close()
    return state, initializer.train_state_axes


def score_checkpoint(
    checkpoint: str,
    data: Path,
    out: Path,
    gin_files: Sequence[str] = (),
    bindings: Sequence[str] = (),
    vocabulary: Path | None = None,
    rows: int | None = None,
    overwrite: bool = False,
) -> None:
    """`t0x score`: restores, scores, writes, and says what it did.

    Started again after it was killed, it goes on where it was; where all is done, it does nothing.

    Raises:
      FileNotFoundError: checkpoint, configuration, data or vocabulary is not there.
      ValueError: no row of the file can be scored, or `out` is there from something else.
    """
    for name, path in (("--data", data), ("--vocabulary", vocabulary)):
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"{name} {path}: no such file")
    if data.suffix in (".gz", ".zst", ".parquet"):
        raise ValueError(
            f"--data {data}: rows are read from JSON lines; unpack or convert it first"
        )
    checkpoint = find_checkpoint(checkpoint)
    setup = read_setup(checkpoint, gin_files, bindings)
    words = setup.model.input_vocabulary, setup.model.output_vocabulary
    if vocabulary is not None:
        words = (seqio.SentencePieceVocabulary(str(vocabulary), extra_ids=0),) * 2
    encoder = encoding.ChoiceEncoder(
        {
            "inputs": seqio.Feature(words[0], add_eos=False),
            "targets": seqio.Feature(words[1], add_eos=True),
        },
        setup.limits,
    )
    state, axes = restore(setup, checkpoint)
    told_apart_by = {
        "checkpoint": fingerprints.of_parameters(state.params),
        "model": _fingerprint(repr(setup.model.module)),
        "vocabulary": _fingerprint(*map(_describe, words)),
        "limits": _fingerprint(repr(sorted(encoder.limits.items()))),
        "rows of a batch": _fingerprint(f"{rows} over {setup.partitioner.data_mesh_size}"),
    }
    scorer = Scorer(setup.model, setup.partitioner, state, axes, rows=rows)
    ledger = score_file(data, out, scorer, encoder, told_apart_by, overwrite)
    _report(ledger, out, encoder)
    if not ledger.examples:
        raise ValueError(f"--data {data}: no row can be scored, see {out}.bad.jsonl")
    console.say(
        f"{ledger.examples} examples in {ledger.seconds:.1f} s "
        f"({ledger.examples / ledger.seconds:.1f} examples/s; "
        f"compile {scorer.compile_seconds:.1f} s apart)"
    )


def _fingerprint(*texts: str) -> str:
    return fingerprints.of_parts(text.encode() for text in texts)


def _describe(vocabulary: seqio.Vocabulary) -> str:
    """What tells a vocabulary from others."""
    pieces = hashlib.sha256(getattr(vocabulary, "sp_model", None) or b"").hexdigest()
    return f"{type(vocabulary).__name__} {vocabulary.vocab_size} {pieces}"


def _report(ledger: Ledger, out: Path, encoder: encoding.ChoiceEncoder) -> None:
    if ledger.bad:
        first = "; ".join(f"line {number}: {error}" for number, error in ledger.first_bad)
        more = "; …" if ledger.bad > BAD_ROWS_SHOWN else ""
        console.say(f"{ledger.bad} rows not scored, see {out}.bad.jsonl ({first}{more})")
    if ledger.inputs_cut or ledger.choices_cut:
        console.say(
            f"cut at {encoder.limits}: {ledger.inputs_cut} inputs, {ledger.choices_cut} choices"
        )
    if ledger.encoded_again:
        console.say(f"{ledger.encoded_again} inputs encoded again for more choices")
    if ledger.near_ties:
        console.say(
            f"{ledger.near_ties} near-ties (best two within {rank_classification.NEAR_TIE} nats)"
        )
    if ledger.labelled:
        share = 100 * ledger.right / ledger.labelled
        console.say(f"accuracy {share:.2f} % of {ledger.labelled} labelled examples")
