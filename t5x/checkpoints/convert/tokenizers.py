"""A Hugging Face tokenizer from a SentencePiece model of T5's kind.

Written: spiece.model without the sentinels (T5's tokenizer adds them), tokenizer.json, which the
tokenizers library reads, and tokenizer_config.json.
"""

import base64
import json
from pathlib import Path
from typing import Any

from t5x.checkpoints.convert.settings import SENTINELS

_METASPACE = {
    "type": "Metaspace",
    "replacement": "▁",
    "prepend_scheme": "always",
    "split": True,
}
_UNIGRAM = 1
_UNKNOWN = 2  # the type of a piece; the trainer's own unk_id need not be where it is


def write_tokenizer(vocabulary: Path, directory: Path, vocab_size: int) -> list[str]:
    """Writes a tokenizer.

    Args:
      vocabulary: the SentencePiece model.
      directory: where the files go.
      vocab_size: the model's; ids of all tokens are below it.

    Returns:
      What to tell the user, a sentence each.

    Raises:
      ValueError: it has more pieces than the model has embeddings.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(vocabulary.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{vocabulary} is no SentencePiece model: {error}") from error
    own = [piece.piece for piece in model.pieces]
    while own and "<extra_id_" in own[-1]:
        own.pop()
    sentinels = len(model.pieces) - len(own) or min(SENTINELS, vocab_size - len(own))
    if len(own) > vocab_size:
        raise ValueError(
            f"{vocabulary} has {len(own)} pieces and the model {vocab_size} embeddings: name the "
            "SentencePiece model it was trained with by --vocabulary"
        )
    del model.pieces[len(own) :]
    (directory / "spiece.model").write_bytes(model.SerializeToString())
    names = [f"<extra_id_{i}>" for i in range(sentinels)]
    # transformers' T5Tokenizer has T5's ids of special pieces whatever the files say.
    is_t5s = own[:3] == ["<pad>", "</s>", "<unk>"]
    config = {
        "tokenizer_class": "T5Tokenizer" if is_t5s else "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "extra_ids": sentinels,
        "additional_special_tokens": names,
        "model_max_length": 512,
    }
    files = {"tokenizer_config.json": config}
    notes = []
    if model.trainer_spec.model_type == _UNIGRAM and not model.trainer_spec.byte_fallback:
        files["tokenizer.json"] = _fast_tokenizer(model, names)
    else:
        notes.append("tokenizer.json is left out: the SentencePiece model is not a plain unigram")
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        (directory / name).write_text(text, encoding="utf-8")
    return notes


def _fast_tokenizer(model: Any, sentinels: list[str]) -> dict[str, Any]:
    """Returns the content of tokenizer.json for a unigram model."""
    pieces = [[piece.piece, piece.score] for piece in model.pieces]
    # The last sentinel has the lowest id.
    vocab = pieces + [[name, 0.0] for name in reversed(sentinels)]
    ids = {piece: i for i, (piece, _) in enumerate(vocab)}
    special = ["<pad>", "</s>", "<unk>", *sentinels]
    normalizers = []
    if model.normalizer_spec.precompiled_charsmap:
        charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    normalizers.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": side, "type_id": 0}} for side in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": ids[name],
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for name in sorted(special, key=ids.__getitem__)
            if name in ids
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, _METASPACE],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, end],
            "pair": [first, end, second, end],
            "special_tokens": {
                "</s>": {"id": "</s>", "ids": [ids["</s>"]], "tokens": ["</s>"]},
            },
        },
        "decoder": _METASPACE,
        "model": {
            "type": "Unigram",
            "unk_id": [piece.type for piece in model.pieces].index(_UNKNOWN),
            "vocab": vocab,
            "byte_fallback": False,
        },
    }
