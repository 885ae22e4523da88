"""The T5 family in Hugging Face's layout: the names, shapes and settings of our parameters there.

Facts from transformers' T5, MT5 and UMT5ForConditionalGeneration. Linear weights are (out, in)
there and (in, out) here. The arrays decide what a model is before its config.json does, whose
`tie_word_embeddings` has meant several things: that logits come from the embedding matrix, that the
activations before them are scaled (transformers below 5.24), or nothing (since then it is true for
every model, and `scale_decoder_outputs` says the latter).
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from t5x.checkpoints.formats.safetensors import INDEX_FILE, SINGLE_FILE, TensorFiles
from t5x.checkpoints.formats.storage import Directory
from t5x.checkpoints.layer_names import layer_name
from t5x.checkpoints.layouts import StoredArray

CONFIG_FILE = "config.json"
PICKLED_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
EMBEDDING, LOGITS = "shared.weight", "lm_head.weight"
# The embedding again, as older versions wrote it.
DUPLICATES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Held by files of old versions and by no model: cross-attention has no relative positions.
OBSOLETE = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
BUCKETS, MAX_DISTANCE = 32, 128
# More than any model has: a shape is looped over and multiplied before its weights are met.
MOST_LAYERS, MOST_OF_AN_AXIS = 1_000, 100_000_000
_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}
# T5Config.mlp_activations by feed_forward_proj. What they call gated-gelu is the approximation by
# tanh, as flax.linen's gelu is; their plain gelu is not.
ACTIVATIONS = {
    "relu": ("relu",),
    "gated-relu": ("relu", "linear"),
    "gated-gelu": ("gelu", "linear"),
    "silu": ("silu",),
    "gated-silu": ("silu", "linear"),
}
MODEL_TYPES = ("t5", "mt5", "umt5")


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """The shape of a model and what sets it apart in its family, named as in `network.T5Config`."""

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_activations: tuple[str, ...] = ACTIVATIONS["gated-gelu"]
    logits_via_embedding: bool = False
    scale_logits: bool = False
    relative_bias_per_layer: bool = False

    @property
    def name(self) -> str:
        """What such a model is called."""
        if self.relative_bias_per_layer:
            return "umT5"
        if self.logits_via_embedding and self.scale_logits and self.mlp_activations == ("relu",):
            return "T5 1.0"
        if self.mlp_activations == ACTIVATIONS["gated-silu"]:
            return "UL2"
        return "T5 v1.1"


@dataclasses.dataclass(frozen=True)
class Weight:
    """A parameter of ours in their layout.

    Attributes:
      name: theirs.
      shape: ours.
      transposed: whether theirs has the axes the other way round.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool

    @property
    def their_shape(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.transposed else self.shape


def read_config(directory: Directory) -> dict[str, Any]:
    """Returns config.json.

    Raises:
      ValueError: it is not there, or is no JSON object.
    """
    text = directory.read(CONFIG_FILE)
    try:
        config = json.loads(text or b"")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{directory}/{CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{directory}/{CONFIG_FILE} is not a JSON object")
    return config


def model_size(
    config: Mapping[str, Any],
    where: str,
    names: Collection[str] | None = None,
    head_is_embedding: bool = False,
) -> ModelSize:
    """Returns what model a config.json and the names of the tensors describe.

    Args:
      config: the content of config.json.
      where: its path, for messages.
      names: of the tensors; None leaves all to config.json.
      head_is_embedding: whether `lm_head.weight`, if there is one, is the embedding again.

    Raises:
      ValueError: it is no model of the family; the message says what it is.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise ValueError(
            f"{where} describes a model of type {kind!r}; what can be read is the T5 family: "
            "T5, T0, T5-LM-adapt, FLAN-T5, mT5, umT5, ByT5, UL2 (types 't5', 'mt5' and 'umt5')"
        )
    activation = config.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{where} has feed_forward_proj = {activation!r}; the networks here have one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    expected = {
        "relative_attention_num_buckets": BUCKETS,
        "relative_attention_max_distance": MAX_DISTANCE,
        "layer_norm_epsilon": 1e-6,
    }
    for field, ours in expected.items():
        if (value := config.get(field, ours)) != ours:
            raise ValueError(f"{where} has {field} = {value!r}; the networks here have {ours!r}")
    fields = ("vocab_size", "d_model", "num_heads", "d_kv", "d_ff", "num_layers")
    if lacking := [field for field in fields if not isinstance(config.get(field), int)]:
        raise ValueError(f"{where} lacks {', '.join(lacking)}")
    sizes = {field: config[field] for field in fields}
    sizes["num_decoder_layers"] = config.get("num_decoder_layers") or config["num_layers"]
    for field, value in sizes.items():
        most = MOST_LAYERS if field.endswith("layers") else MOST_OF_AN_AXIS
        if type(value) is not int or not 0 < value <= most:
            raise ValueError(f"{where} has {field} = {value!r:.40}; expected 1 to {most:,}")
    said_tied = config.get("tie_word_embeddings", kind == "t5") is not False
    tied, per_layer = said_tied, kind == "umt5"
    if names is not None:
        tied = LOGITS not in names or (said_tied and head_is_embedding)
        second = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
        per_layer = second in names or (kind == "umt5" and config["num_layers"] == 1)
    # MT5 scales nothing whatever it says of ties; the others say it by them, or since 5.24 apart.
    scaled = config.get("scale_decoder_outputs")
    scaled = (said_tied and kind != "mt5") if scaled is None else bool(scaled)
    return ModelSize(
        *sizes.values(),
        mlp_activations=ACTIVATIONS[activation],
        logits_via_embedding=tied,
        scale_logits=scaled,
        relative_bias_per_layer=per_layer,
    )


def describe_logits(size: ModelSize) -> str:
    """How the logits of a model are read, for the user."""
    source = "the embedding matrix" if size.logits_via_embedding else f"{LOGITS}"
    scale = "scaled by 1/sqrt(d_model)" if size.scale_logits else "not scaled"
    return f"logits from {source}, {scale}"


def make_config(size: ModelSize, dtype: np.dtype) -> dict[str, Any]:
    """Returns the config.json of a model whose weights have a dtype.

    transformers below 5.24 knows two ways of making logits, tied and scaled or neither; a model of
    another is for 5.24 and later.
    """
    activation = next(name for name, ours in ACTIVATIONS.items() if ours == size.mlp_activations)
    kind, title = ("umt5", "UMT5") if size.relative_bias_per_layer else ("t5", "T5")
    config = {
        "architectures": [f"{title}ForConditionalGeneration"],
        "model_type": kind,
        "d_model": size.emb_dim,
        "d_kv": size.head_dim,
        "d_ff": size.mlp_dim,
        "num_heads": size.num_heads,
        "num_layers": size.num_encoder_layers,
        "num_decoder_layers": size.num_decoder_layers,
        "vocab_size": size.vocab_size,
        "feed_forward_proj": activation,
        "dropout_rate": 0.1,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-6,
        "relative_attention_max_distance": MAX_DISTANCE,
        "relative_attention_num_buckets": BUCKETS,
        "tie_word_embeddings": size.logits_via_embedding,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": np.dtype(dtype).name,
        "use_cache": True,
    }
    if size.scale_logits != size.logits_via_embedding:
        config["scale_decoder_outputs"] = size.scale_logits
    return config


def weights(size: ModelSize) -> dict[str, Weight]:
    """Returns the parameters of an unrolled model by path ('encoder/layers_0/mlp/wo/kernel')."""
    found = {"token_embedder/embedding": Weight(EMBEDDING, (size.vocab_size, size.emb_dim), False)}
    if not size.logits_via_embedding:
        head = Weight(LOGITS, (size.emb_dim, size.vocab_size), True)
        found["decoder/logits_dense/kernel"] = head
    for stack, count in (
        ("encoder", size.num_encoder_layers),
        ("decoder", size.num_decoder_layers),
    ):
        norm, bias = (
            f"{stack}.final_layer_norm.weight",
            "layer.0.SelfAttention.relative_attention_bias.weight",
        )
        found[f"{stack}/{stack}_norm/scale"] = Weight(norm, (size.emb_dim,), False)
        for layer in range(count if size.relative_bias_per_layer else 1):
            owner = f"{stack}/layers_{layer}" if size.relative_bias_per_layer else stack
            found[f"{owner}/relpos_bias/rel_embedding"] = Weight(
                f"{stack}.block.{layer}.{bias}", (size.num_heads, BUCKETS), True
            )
        for layer in range(count):
            for path, weight in _layer(stack, size).items():
                found[f"{layer_name(stack, layer)}/{path}"] = dataclasses.replace(
                    weight, name=f"{stack}.block.{layer}.{weight.name}"
                )
    return found


def _layer(stack: str, size: ModelSize) -> dict[str, Weight]:
    """The parameters of one layer, their names from 'layer.' on."""
    if stack == "encoder":
        attentions = [("attention", "pre_attention_layer_norm", "SelfAttention")]
    else:
        attentions = [
            ("self_attention", "pre_self_attention_layer_norm", "SelfAttention"),
            ("encoder_decoder_attention", "pre_cross_attention_layer_norm", "EncDecAttention"),
        ]
    joined = size.num_heads * size.head_dim
    found = {}
    for number, (ours, norm, theirs) in enumerate(attentions):
        found[f"{norm}/scale"] = Weight(f"layer.{number}.layer_norm.weight", (size.emb_dim,), False)
        for letter, name in _ATTENTION.items():
            shape = (joined, size.emb_dim) if name == "out" else (size.emb_dim, joined)
            found[f"{ours}/{name}/kernel"] = Weight(
                f"layer.{number}.{theirs}.{letter}.weight", shape, True
            )
    number = len(attentions)
    found["pre_mlp_layer_norm/scale"] = Weight(
        f"layer.{number}.layer_norm.weight", (size.emb_dim,), False
    )
    gates = len(size.mlp_activations)
    for name in (*(["wi"] if gates == 1 else [f"wi_{i}" for i in range(gates)]), "wo"):
        shape = (size.mlp_dim, size.emb_dim) if name == "wo" else (size.emb_dim, size.mlp_dim)
        found[f"mlp/{name}/kernel"] = Weight(
            f"layer.{number}.DenseReluDense.{name}.weight", shape, True
        )
    return found


def shown(lines: Sequence[str], most: int = 3) -> str:
    """Joins the first of several findings, and says how many there are more."""
    rest = len(lines) - most
    return ", ".join(lines[:most]) + (f" and {rest} more" if rest > 0 else "")


def check_names(where: str, found: Mapping[str, Any], size: ModelSize) -> None:
    """Compares the tensors of a model with those that its config.json asks for.

    Args:
      where: the directory, for messages.
      found: objects with a `shape`, by tensor name.
      size: what the config says.

    Raises:
      ValueError: names or shapes differ; the message says which.
    """
    expected = {weight.name: weight.their_shape for weight in weights(size).values()}
    again = {*DUPLICATES, *OBSOLETE, *([LOGITS] if size.logits_via_embedding else [])}
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"lacks {shown(missing)}")
    if strange := sorted(found.keys() - expected.keys() - again):
        problems.append(f"has {shown(strange)}, which {size.name} has not")
    misshapen = [
        f"{name} is {tuple(found[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    if misshapen:
        problems.append(f"does not fit its config.json: {shown(misshapen)}")
    if problems:
        raise ValueError(f"{where} {'; '.join(problems)}")


class HuggingFaceArrays:
    """The parameters of a directory of Hugging Face's, under our names; step 0, no optimizer.

    Args:
      path: the directory or its URL.
      open_pickled: opens weights that are there as pickles only; None refuses them.

    Attributes:
      arrays: by path in the state dict.
      directory: where they lie.
      config: the content of config.json.
      size: the model's.

    Raises:
      ValueError: it is no model of the family, or its weights are not whole or are pickled.
    """

    def __init__(self, path: str, open_pickled: Callable[[Directory], Any] | None = None) -> None:
        self.directory = directory = Directory(path)
        self.config = read_config(directory)
        where = f"{path}/{CONFIG_FILE}"
        model_size(self.config, where)  # what is no model of the family needs no weights
        self._files = _open_weights(directory, open_pickled)
        names = self._files.tensors
        self.size = model_size(self.config, where, names, self._is_embedding(LOGITS))
        check_names(path, names, self.size)
        self._check_duplicates(path)
        self._weights = {
            ("target", *name.split("/")): weight for name, weight in weights(self.size).items()
        }
        self.arrays = {
            key: StoredArray(key, weight.shape, self._files.tensors[weight.name].dtype)
            for key, weight in self._weights.items()
        }
        self.arrays["state", "step"] = StoredArray(("state", "step"), (), np.dtype(np.int32))

    def _is_embedding(self, name: str) -> bool:
        """Whether there is a tensor of this name and it is the embedding again."""
        tensors = self._files.tensors
        if name not in tensors or EMBEDDING not in tensors:
            return False
        if tuple(tensors[name].shape) != (shape := tuple(tensors[EMBEDDING].shape)):
            return False
        blocks = (slice(i, min(i + 4096, shape[0])) for i in range(0, shape[0], 4096))
        return all(
            np.array_equal(self._files.read(name, block), self._files.read(EMBEDDING, block))
            for block in blocks
        )

    def _check_duplicates(self, path: str) -> None:
        """The embedding may be stored twice more; no model of the family has another one there."""
        for name in DUPLICATES:
            if name in self._files.tensors and not self._is_embedding(name):
                raise ValueError(
                    f"{path}: {name} differs from {EMBEDDING}; the T5 family has one embedding"
                )

    def chunk_shape(self, path: tuple[str, ...]) -> tuple[int, ...]:
        """Returns the shape of what is best read as one: an array as a whole."""
        return self.arrays[path].shape

    def read(self, path: tuple[str, ...], index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns an array, or the part that slices (step 1) of its axes select."""
        if path == ("state", "step"):
            return np.zeros((), np.int32)
        weight = self._weights[path]
        theirs = index + (slice(None),) * (len(weight.shape) - len(index))
        if not weight.transposed:
            return self._files.read(weight.name, theirs[0])[(slice(None), *theirs[1:])]
        columns, rows = theirs
        return self._files.read(weight.name, rows)[:, columns].T


def _open_weights(directory: Directory, open_pickled: Callable[[Directory], Any] | None) -> Any:
    if directory.exists(INDEX_FILE) or directory.exists(SINGLE_FILE):
        return TensorFiles(directory)
    if any(directory.exists(name) for name in PICKLED_FILES):
        if open_pickled is not None:
            return open_pickled(directory)
        raise ValueError(
            f"{directory} has pickled weights (pytorch_model.bin), which can run code as they are "
            "read; use a version with model.safetensors, or `t0x convert --allow_pickle`"
        )
    raise ValueError(
        f"{directory} has a {CONFIG_FILE} but neither {SINGLE_FILE} nor {INDEX_FILE}; weights in "
        "several files need the latter"
    )
