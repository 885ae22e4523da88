"""TensorFlow checkpoints of T5, as Mesh TensorFlow wrote them, under the names of our train states.

Facts from upstream's `t5x.checkpoint_importer`: matrices have the same axes in both.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from t5x.checkpoints import layouts
from t5x.checkpoints.formats.storage import Directory
from t5x.checkpoints.layer_names import layer_name
from t5x.checkpoints.layouts import StoredArray, TargetArray

_INDEX_FILE = re.compile(r"(?P<name>.+-(?P<step>[0-9]+))\.index")
_SLOT = re.compile(r"(?P<name>.+?)(?:_slot_(?P<slot>vr|vc|v))?")
_SLOT_FIELDS = {"v": "v", "vr": "v_row", "vc": "v_col"}
_ADAFACTOR_FIELDS = ("m", "v", "v_row", "v_col")
_NORMS = {
    "encoder": ("pre_attention_layer_norm", "pre_mlp_layer_norm"),
    "decoder": (
        "pre_self_attention_layer_norm",
        "pre_cross_attention_layer_norm",
        "pre_mlp_layer_norm",
    ),
}
_ATTENTIONS = {
    ("encoder", "SelfAttention"): "attention",
    ("decoder", "SelfAttention"): "self_attention",
    ("decoder", "EncDecAttention"): "encoder_decoder_attention",
}
_MATRICES = {"q": "query", "k": "key", "v": "value", "o": "out"}
_FIXED = {
    "shared/embedding": "token_embedder/embedding",
    "encoder/embedding": "encoder/token_embedder/embedding",
    "decoder/embedding": "decoder/token_embedder/embedding",
    "encoder/final_layer_norm/scale": "encoder/encoder_norm/scale",
    "encoder/rms_norm/scale": "encoder/encoder_norm/scale",
    "decoder/final_layer_norm/scale": "decoder/decoder_norm/scale",
    "decoder/rms_norm/scale": "decoder/decoder_norm/scale",
    "decoder/logits/kernel": "decoder/logits_dense/kernel",
}
_BLOCK = re.compile(
    r"(?P<stack>encoder|decoder)/block_(?P<block>\d+)/layer_(?P<layer>\d+)/(?P<of>.+)"
)
_ATTENTION = re.compile(r"(?P<kind>SelfAttention|EncDecAttention)/(?P<matrix>[qkvo])")
_MLP = re.compile(r"DenseReluDense/(?P<name>w[io](?:_\d+)?)/kernel")


def is_tensorflow_checkpoint(path: str) -> bool:
    """Tells whether a path is the prefix of a TensorFlow checkpoint's files."""
    directory, name = os.path.split(path)
    return Directory(directory or ".").exists(f"{name}.index")


def list_checkpoints(directory: str) -> list[str]:
    """Returns the prefixes of the TensorFlow checkpoints in a directory, in the order of steps."""
    # What http serves cannot be listed.
    if directory.startswith(("http://", "https://")) or not epath.Path(directory).is_dir():
        return []
    found = (_INDEX_FILE.fullmatch(file.name) for file in epath.Path(directory).iterdir())
    steps = sorted((int(match["step"]), match["name"]) for match in found if match)
    return [os.path.join(directory, name) for _, name in steps]


def translate(name: str) -> str | None:
    """The path in a train state of a variable there, None for one that T5 does not have.

    'encoder/block_003/layer_000/SelfAttention/q_slot_vr' →
    'state/param_states/encoder/layers_3/attention/query/kernel/v_row'.
    """
    if name == "global_step":
        return "state/step"
    match = _SLOT.fullmatch(name)
    parameter = _FIXED.get(match["name"]) or _translate_block(match["name"])
    if parameter is None:
        return None
    if match["slot"] is None:
        return f"target/{parameter}"
    return f"state/param_states/{parameter}/{_SLOT_FIELDS[match['slot']]}"


def _translate_block(name: str) -> str | None:
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    stack, block, layer, of = match["stack"], int(match["block"]), int(match["layer"]), match["of"]
    path = layer_name(stack, block)
    if of == "SelfAttention/relative_attention_bias":
        # A stack that shares its bias has it in the first block.
        return f"{stack if block == 0 else path}/relpos_bias/rel_embedding"
    if attention := _ATTENTION.fullmatch(of):
        kind = _ATTENTIONS.get((stack, attention["kind"]))
        return kind and f"{path}/{kind}/{_MATRICES[attention['matrix']]}/kernel"
    if mlp := _MLP.fullmatch(of):
        return f"{path}/mlp/{mlp['name']}/kernel"
    if of in ("layer_norm/scale", "rms_norm/scale") and layer < len(_NORMS[stack]):
        return f"{path}/{_NORMS[stack][layer]}/scale"
    return None


def read_state(
    path: str,
    targets: Mapping[str, TargetArray],
    factor_map: Mapping[str, Any],
    strict: bool = True,
    translator: Any = None,
) -> dict[str, jax.Array]:
    """Reads what a train state wants, scanned or unrolled.

    Args:
      path: prefix of the checkpoint's files, …/model.ckpt-1000000, or its directory.
      targets: the arrays the train state wants, by path.
      factor_map: see `layouts.plan`.
      strict: refuse what the train state has no place for.
      translator: replaces `translate` and the reading: an object with upstream's method
        `apply({variable: array})` → {path: array}.

    Raises:
      ValueError: variables are unknown, missing or of another shape.
    """
    arrays = _read_variables(path) if translator is None else translator.apply(dict(_load(path)))
    arrays |= dict(_unused_moments(arrays))
    stored = {
        name: StoredArray((name,), tuple(np.shape(array)), jnp.asarray(array).dtype)
        for name, array in arrays.items()
    }
    shapes = {name: target.shape for name, target in targets.items()}
    sources = layouts.plan(stored, shapes, factor_map)
    wrong = [
        name
        for name, shape in shapes.items()
        if name not in sources or sources[name].shape != shape
    ]
    if wrong:
        raise ValueError(
            f"TensorFlow checkpoint {path} does not fit the model: it lacks {wrong[0]} of shape "
            f"{shapes[wrong[0]]} and {len(wrong) - 1} more"
        )
    used = {array.path[0] for source in sources.values() for array in source.inputs}
    unused = sorted(name for name in arrays if name not in used and np.size(arrays[name]) > 1)
    if unused and strict:
        raise ValueError(
            f"TensorFlow checkpoint {path} has {unused[0]} and {len(unused) - 1} more that the "
            "model has not; bind RestoreCheckpointConfig.strict = False to leave them out"
        )
    logging.info("%d arrays of %s are left out", len(unused), path)
    state = {}
    for name, source in sources.items():
        inputs = [jnp.asarray(arrays[array.path[0]]) for array in source.inputs]
        value = source.build(inputs, targets[name].sharding)
        is_float = jnp.issubdtype(value.dtype, jnp.floating)
        dtype = targets[name].dtype
        state[name] = value.astype(dtype) if dtype is not None and is_float else value
    return state


def _load(path: str) -> Iterator[tuple[str, np.ndarray]]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(path)
    for name in reader.get_variable_to_shape_map():
        yield name, reader.get_tensor(name)


def _read_variables(path: str) -> dict[str, np.ndarray]:
    arrays, unknown = {}, []
    for name, array in _load(path):
        if (translated := translate(name)) is None:
            unknown.append(name)
        else:
            arrays[translated] = array.astype(np.int32) if name == "global_step" else array
    if unknown:
        raise ValueError(
            f"TensorFlow checkpoint {path} has variables that are not T5's: {unknown[0]} and "
            f"{len(unknown) - 1} more"
        )
    return arrays


def _unused_moments(arrays: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Stand-ins for what our Adafactor has for every parameter, used or not."""
    moments = {name.rpartition("/")[0] for name in arrays if name.startswith("state/param_states/")}
    for moment in moments:
        for field in _ADAFACTOR_FIELDS:
            if f"{moment}/{field}" not in arrays:
                yield f"{moment}/{field}", np.zeros(1, np.float32)
