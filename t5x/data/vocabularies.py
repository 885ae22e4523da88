"""What tells one vocabulary from another in a prepared store."""

import hashlib
from typing import Any

from etils import epath


def hash_vocabulary(vocabulary: Any) -> str:
    """SHA-256 of a SentencePiece model's file as it lies; of the settings where there is no file.

    Extra ids do not count: they show in the vocabulary's size.

    Args:
      vocabulary: a `seqio.Vocabulary`, or anything like it.

    Raises:
      FileNotFoundError: the model's file is not there.
    """
    file = getattr(vocabulary, "sentencepiece_model_file", None)
    if file:
        return hashlib.sha256(epath.Path(file).read_bytes()).hexdigest()
    settings = f"{type(vocabulary).__name__} {vocabulary.vocab_size} {vocabulary.extra_ids}"
    return hashlib.sha256(settings.encode()).hexdigest()
