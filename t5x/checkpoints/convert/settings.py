"""A model's settings in gin: written for what was imported, read from a run that is exported."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5x.checkpoints.formats.huggingface import ModelSize

_GIN = """\
# {size} T5 v1.1, converted from {source}.
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
_VOCABULARY = """
seqio.SentencePieceVocabulary:
  sentencepiece_model_file = {path!r}
  extra_ids = {extra_ids}
"""
SENTINELS = 100


def write_gin(
    path: Path,
    size: ModelSize,
    config: Mapping[str, Any],
    source: str,
    vocabulary: Path | None,
) -> None:
    """Writes the gin settings of an imported model.

    Args:
      path: of the gin file.
      size: the model's.
      config: its config.json.
      source: where it comes from.
      vocabulary: its SentencePiece model, if it has one.
    """
    sizes = vars(size)
    text = _GIN.format(
        size=f"{size.num_encoder_layers}+{size.num_decoder_layers} layers, width {size.emb_dim}:",
        source=source,
        dropout=float(config.get("dropout_rate", 0.1)),
        **sizes,
    )
    if vocabulary is not None:
        extra_ids = count_extra_ids(vocabulary, size.vocab_size)
        text += _VOCABULARY.format(path=str(vocabulary.absolute()), extra_ids=extra_ids)
    path.write_text(text, encoding="utf-8")


def count_extra_ids(vocabulary: Path, vocab_size: int) -> int:
    """Returns how many sentinels a model's vocabulary has after its SentencePiece model's pieces.

    T5's has 32,000 pieces and 100 sentinels after them; mT5's sentinels are pieces.
    """
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(vocabulary))
    has_sentinels = "extra_id_0" in pieces.id_to_piece(len(pieces) - 1)
    fits = len(pieces) + SENTINELS <= vocab_size
    return SENTINELS if fits and not has_sentinels else 0


def read_gin(path: Path) -> dict[str, str]:
    """Returns what a run's config.gin binds of what matters to its layout, as gin text.

    Keys: 'mlp_activations', 'sentencepiece_model_file'; those that are bound.
    """
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    found = {}
    for name in ("mlp_activations", "sentencepiece_model_file"):
        if match := re.search(rf"^(?![^\n]*#)[^\n]*\b{name} *= *([^\n]+)$", text, re.MULTILINE):
            found[name] = match[1].strip()
    return found
