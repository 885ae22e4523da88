"""A model's settings in gin: written for what was imported, read from a run that is exported."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5x.checkpoints.formats.huggingface import ModelSize

_GIN = """\
# {size} {name}, converted from {source}.
# `python -m t5x.train` and `python -m t5x.eval` take it as a model: include it in a run file.

from __gin__ import dynamic_registration

import seqio
from t5x.examples.t5 import network

include 't5x/examples/t5/t5_1_1/base.gin'

DROPOUT_RATE = {dropout}
network.T5Config:
  vocab_size = {vocab_size}
  emb_dim = {emb_dim}
  num_heads = {num_heads}
  num_encoder_layers = {num_encoder_layers}
  num_decoder_layers = {num_decoder_layers}
  head_dim = {head_dim}
  mlp_dim = {mlp_dim}
"""
# What sets a model apart from T5 v1.1 in its family.
_OPTIONS = ("mlp_activations", "logits_via_embedding", "scale_logits", "relative_bias_per_layer")
_BYTES = """
VOCABULARY = @seqio.ByteVocabulary()
"""
_VOCABULARY = """
seqio.SentencePieceVocabulary:
  sentencepiece_model_file = {path!r}
  extra_ids = {extra_ids}
"""
SENTINELS = 100
_LARGEST_GIN = 1 << 20


def make_gin(
    size: ModelSize,
    config: Mapping[str, Any],
    source: str,
    vocabulary: "tuple[Path, Pieces] | None",
    over_bytes: bool = False,
) -> str:
    """Returns the gin settings of an imported model.

    Args:
      size: the model's.
      config: its config.json.
      source: where it comes from.
      vocabulary: where its SentencePiece model will be, and what that holds; None for T5's own.
      over_bytes: whether its tokens are bytes, as ByT5's are.

    Raises:
      ValueError: config.json has no number as dropout_rate.
    """
    dropout = config.get("dropout_rate", 0.1)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(
            f"{source}/config.json: dropout_rate = {dropout!r} is no number from 0 to under 1"
        )
    text = _GIN.format(
        size=f"{size.num_encoder_layers}+{size.num_decoder_layers} layers, width {size.emb_dim}:",
        name=size.name,
        source=source,
        dropout=float(dropout),
        **vars(size),
    )
    # The class has those of T5 v1.1.
    for name in _OPTIONS:
        if (value := getattr(size, name)) != getattr(ModelSize, name):
            text += f"  {name} = {value!r}\n"
    if size.logits_via_embedding and not size.scale_logits:
        text += "  scale_logits = False\n"
    if over_bytes:
        return text + _BYTES
    if vocabulary is not None:
        path, pieces = vocabulary
        extra_ids = pieces.count_extra_ids(size.vocab_size)
        text += _VOCABULARY.format(path=str(path.absolute()), extra_ids=extra_ids)
    return text


@dataclasses.dataclass(frozen=True)
class Pieces:
    """How many pieces a SentencePiece model has, and whether its last ones are sentinels."""

    count: int
    has_sentinels: bool

    def count_extra_ids(self, vocab_size: int) -> int:
        """Returns how many sentinels a model's vocabulary has after the pieces.

        T5's has 32,000 pieces and 100 sentinels after them; mT5's sentinels are pieces.
        """
        fits = self.count + SENTINELS <= vocab_size
        return SENTINELS if fits and not self.has_sentinels else 0


def count_pieces(model: bytes, name: str) -> Pieces:
    """Reads a SentencePiece model.

    Args:
      model: the content of its file.
      name: of the file, for the message.

    Raises:
      ValueError: it is damaged, or something else.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        pieces = SentencePieceProcessor(model_proto=model)
        count = len(pieces)
        return Pieces(count, "extra_id_0" in pieces.id_to_piece(count - 1))
    except (RuntimeError, IndexError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(f"{name} is no SentencePiece model, or damaged ({cause})") from error


def read_gin(path: Path) -> dict[str, str]:
    """Returns what a run's config.gin binds of what matters to its layout, as gin text.

    Keys: 'mlp_activations', 'scale_logits', 'sentencepiece_model_file'; those that are bound.
    """
    if not path.is_file():
        return {}
    if path.stat().st_size > _LARGEST_GIN:
        raise ValueError(f"{path} is no gin of a run: it has more than {_LARGEST_GIN:,} bytes")
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for name in ("mlp_activations", "scale_logits", "sentencepiece_model_file"):
        if match := re.search(rf"^(?![^\n]*#)[^\n]*\b{name} *= *([^\n]+)$", text, re.MULTILINE):
            found[name] = match[1].strip()
    return found
