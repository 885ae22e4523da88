"""What inference reads from files and what it writes: ad-hoc tasks, JSON lines, merged chunks."""

import functools
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import seqio
import tensorflow as tf
from etils import epath
from google.protobuf.message import DecodeError

from t5x.data import json_lines
from t5x.run.console import console
from t5x.run.files import written_whole

# (results by row, auxiliary values by name and row)
Inferences = tuple[Sequence[Any], Mapping[str, Any]]
MODES = ("predict", "predict_with_aux", "score")
FILE_TYPES = ("tfrecord", "jsonl", "text")
_SPLIT = "infer"
_PRETOKENIZED = "_pretokenized"
_GZIP = b"\x1f\x8b"


def create_task_from_tfexample_file(
    paths: Sequence[str],
    file_type: str,
    inputs_key: str,
    targets_key: str | None,
    features: Mapping[str, seqio.Feature],
    task_id: str | None = None,
    bad_lines: str = "error",
) -> str:
    """Registers a SeqIO task over files, with the split 'infer'.

    Args:
      paths: files or glob patterns.
      file_type: 'tfrecord' (of tf.train.Example), 'jsonl' (an object a line) or 'text' (an input a
        line, where the keys are not used). Upstream has the first.
      inputs_key: name of the field with the input's text.
      targets_key: name of the field with the target's text, which only scoring needs, or None.
      features: the task's features 'inputs' and 'targets'.
      task_id: end of the task's name; a digest of the arguments when None.
      bad_lines: what to do with lines that are no row: 'error', or 'skip' to leave them out and say
        how many. (Ours; of 'jsonl' and 'text', which may be packed as .gz or .zst.)

    Returns:
      The task's name, 'infer_<task_id>'.

    Raises:
      ValueError: the type is unknown, no file is there, or a line lacks a field.
    """
    if bad_lines not in ("error", "skip"):
        raise ValueError(
            f"create_task_from_tfexample_file.bad_lines = '{bad_lines}' is not 'error' or 'skip'"
        )
    if file_type not in FILE_TYPES:
        raise ValueError(
            f"create_task_from_tfexample_file.file_type = '{file_type}' is not one of "
            f"{', '.join(FILE_TYPES)}"
        )
    paths = [paths] if isinstance(paths, str) else list(paths)
    files = sorted(tf.io.gfile.glob(paths))
    if not files:
        raise ValueError(f"create_task_from_tfexample_file.paths: no file matches {paths}")
    if task_id is None:
        key = ":".join([*paths, inputs_key, targets_key or ""])
        task_id = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()[:10]
    keys = {"inputs": inputs_key, "targets": targets_key}
    if file_type == "tfrecord":
        source = RecordSource(files, [key for key in keys.values() if key])
        rekey = [functools.partial(seqio.preprocessors.rekey, key_map=keys)]
    else:
        source, rekey = _source_of_lines(files, file_type, keys, bad_lines), []
    task = seqio.TaskRegistry.add(
        f"infer_{task_id}",
        source=source,
        preprocessors=[*rekey, seqio.preprocessors.tokenize_and_append_eos],
        output_features=features,
    )
    return task.name


class RecordSource(seqio.TFExampleDataSource):
    """TFRecord files of tf.train.Example, each with one text under every key.

    Args:
      files: paths.
      keys: names of the features to read.
    """

    def __init__(self, files: Sequence[str], keys: Sequence[str]) -> None:
        self._files, self._keys = files, keys
        description = {key: tf.io.FixedLenFeature([], tf.string) for key in keys}
        super().__init__({_SPLIT: files}, feature_description=description)

    def find_mistake(self) -> str | None:
        """What cannot be read: file, record and key. Reads up to there; None if all is well."""
        mistakes = (self._find_mistake_in(file) for file in self._files)
        return next((mistake for mistake in mistakes if mistake), None)

    def _find_mistake_in(self, file: str) -> str | None:
        with epath.Path(file).open("rb") as opened:
            if opened.read(len(_GZIP)) == _GZIP:
                return f"{file} is compressed; TFRecord files are read as they are: gunzip it"
        records, number = tf.data.TFRecordDataset(file).as_numpy_iterator(), 1
        while True:
            try:
                record = next(records, None)
            except tf.errors.DataLossError as error:
                cause = error.message.split(" [")[0].split("\n")[0]
                return f"{file}, record {number}: it is cut short or damaged ({cause})"
            if record is None:
                return None
            mistake = self._find_mistake_of(record)
            if mistake:
                return f"{file}, record {number}: {mistake}"
            number += 1

    def _find_mistake_of(self, record: bytes) -> str | None:
        try:
            features = tf.train.Example.FromString(record).features.feature
        except DecodeError:
            return "it is no tf.train.Example"
        for key in self._keys:
            if key not in features:
                return (
                    f"no feature '{key}', there is {', '.join(sorted(features)) or 'none'}; bind "
                    "create_task_from_tfexample_file's keys"
                )
            if len(features[key].bytes_list.value) != 1:
                return f"feature '{key}' is not one text"
        return None


def _source_of_lines(
    files: Sequence[str], file_type: str, keys: Mapping[str, str | None], bad_lines: str
) -> seqio.FunctionDataSource:
    """All rows, read at once, so that a bad line is known before anything is computed."""
    rows = [row for file in files for row in _read_rows(file, file_type, keys, bad_lines)]
    columns = {name: [row[name] for row in rows] for name in keys}
    return seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(columns),
        splits=[_SPLIT],
        num_input_examples={_SPLIT: len(rows)},
    )


def _read_rows(
    path: str, file_type: str, keys: Mapping[str, str | None], bad_lines: str
) -> Iterator[dict[str, str]]:
    bad: dict[int, str] = {}
    with json_lines.open_unpacked(path) as file:
        for line in json_lines.read(file):
            if line.is_blank:
                continue
            try:
                yield _row_of(line, file_type, keys)
            except json_lines.LineError as error:
                bad[line.number] = str(error)
    if bad:
        message = json_lines.describe(path, bad)
        if bad_lines == "error":
            raise ValueError(
                f"{message}; mend them or bind create_task_from_tfexample_file.bad_lines = 'skip'"
            )
        console.say(f"{message}; left out")


def _row_of(
    line: json_lines.Line, file_type: str, keys: Mapping[str, str | None]
) -> dict[str, str]:
    if file_type == "text":
        return {"inputs": line.text.rstrip("\r\n"), "targets": ""}
    row = line.parse()
    return {name: _text_of(row, key) if key else "" for name, key in keys.items()}


def _text_of(row: Mapping[str, Any], key: str) -> str:
    text = row.get(key)
    if not isinstance(text, str):
        raise json_lines.LineError(
            f"no text under '{key}'; bind create_task_from_tfexample_file's keys"
        )
    return text


def write_inferences_to_file(
    path: str,
    inferences: Inferences,
    task_ds: tf.data.Dataset,
    mode: str,
    vocabulary: seqio.Vocabulary | None = None,
    json_encoder_cls: type[json.JSONEncoder] = seqio.TensorAndNumpyEncoder,
    include_all_inputs: bool = False,
    input_fields_to_include: Sequence[str] | None = None,
    output_ids: bool = False,
) -> None:
    """Writes a JSON line for each row: {"inputs": {…}, "prediction" or "score": …[, "aux": {…}]}.

    Args:
      path: file to write.
      inferences: (results, auxiliary values), of which only 'predict_with_aux' needs the latter.
      task_ds: the task's rows, in the same order.
      mode: one of MODES.
      vocabulary: turns predicted tokens into text.
      json_encoder_cls: writes what json itself does not know.
      include_all_inputs: write all features, not the *_pretokenized ones alone.
      input_fields_to_include: write these features, pretokenized ones included.
      output_ids: write "prediction_tokens" too, up to the first padding.

    Raises:
      ValueError: an unknown mode, a missing vocabulary, or both choices of inputs at once.
    """
    if mode not in MODES:
        raise ValueError(f"infer.mode = '{mode}' is not one of {', '.join(MODES)}")
    if mode != "score" and vocabulary is None:
        raise ValueError(f"mode '{mode}' needs a vocabulary to write text with")
    if include_all_inputs and input_fields_to_include is not None:
        raise ValueError(
            "write_inferences_to_file: bind include_all_inputs or input_fields_to_include, not both"
        )

    def is_included(name: str) -> bool:
        if include_all_inputs:
            return True
        if input_fields_to_include is None:
            return name.endswith(_PRETOKENIZED)
        return {name, name.removesuffix(_PRETOKENIZED)} & set(input_fields_to_include) != set()

    results, auxiliary = inferences
    with written_whole(path) as partial, partial.open("w") as file:
        for i, row in enumerate(task_ds.as_numpy_iterator()):
            line: dict[str, Any] = {
                "inputs": {name: _plain(x) for name, x in row.items() if is_included(name)}
            }
            if mode == "score":
                line["score"] = _plain(results[i])
            else:
                line["prediction"] = _plain(vocabulary.decode_tf(tf.constant(results[i])).numpy())
                if output_ids:
                    line["prediction_tokens"] = _without_padding(_plain(results[i]))
            if mode == "predict_with_aux" or (mode == "score" and auxiliary):
                line["aux"] = jax.tree.map(
                    lambda rows, i=i: _plain(rows[i]),
                    auxiliary,
                    is_leaf=lambda leaf: isinstance(leaf, list | np.ndarray),
                )
            file.write(json.dumps(line, cls=json_encoder_cls) + "\n")


def _plain(value: Any) -> Any:
    """As JSON has it; upstream writes all single numbers as floats."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.generic) and not isinstance(value, np.bool_):
        return float(value)
    if isinstance(value, np.ndarray | jax.Array):
        return np.asarray(value).tolist()
    return value


def _without_padding(tokens: list[Any]) -> list[Any]:
    return tokens[: tokens.index(0)] if 0 in tokens else tokens


def merge_chunks_to_file(
    output_dir: str, output_fname: str, tmp_dir: str, step: int | None
) -> None:
    """Joins the chunks of `tmp_dir` in order into OUTPUT_DIR/output_fname, which appears whole.

    Args:
      output_dir, output_fname: where the result goes.
      tmp_dir: folder of `<output_fname>-chunk00000` and so on.
      step: step of the checkpoint; a merge function of the user's may want it.

    Raises:
      FileNotFoundError: there is no chunk, or one is missing in between.
    """
    del step
    chunks = sorted(epath.Path(tmp_dir).glob(f"{output_fname}-chunk?????"))
    expected = [f"{output_fname}-chunk{i:05}" for i in range(len(chunks))]
    if not chunks or [chunk.name for chunk in chunks] != expected:
        raise FileNotFoundError(f"{tmp_dir} lacks chunks of {output_fname}: it has {len(chunks)}")
    whole = written_whole(epath.Path(output_dir) / output_fname)
    with whole as partial, partial.open("wb") as merged:
        for chunk in chunks:
            with chunk.open("rb") as file:
                shutil.copyfileobj(file, merged)
