"""T5's SentencePiece vocabulary, found when it is first used rather than when tasks are registered.

Looked for in this order: the path given (gin: `t0x.vocabulary.t5_vocabulary.path`),
$T0X_VOCABULARY, a single *.model in $T0X_DATA_DIR/vocab or $T0X_DATA_DIR/../vocab, one in the cache
($T0X_CACHE_DIR or ~/.cache/t0x, folder vocab); else it is downloaded there once from T5's bucket.
"""

import os
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import gin
import seqio
import tensorflow as tf
from absl import logging

from t0x.prompts.collection import cache_directory

MODEL_NAME = "cc_all.32000.100extra.sentencepiece.model"
GCS_PATH = "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"
# The same object by plain https: TensorFlow's gs:// reader retries for minutes without a network.
DOWNLOAD_URL = GCS_PATH.replace("gs://", "https://storage.googleapis.com/")
DOWNLOAD_TIMEOUT_SECONDS = 20
FIXES = (
    "set $T0X_VOCABULARY (or t0x.vocabulary.t5_vocabulary.path in gin) to a SentencePiece model, "
    "or run --gin_file=t0_mini.gin, which needs no download"
)


class T5Vocabulary(seqio.SentencePieceVocabulary):
    """SentencePieceVocabulary whose file is found on first use; pickles and copies unresolved.

    Equal to any SentencePieceVocabulary over the same model with the same extra ids.
    """

    def __init__(self, path: str | None = None, extra_ids: int = 0) -> None:
        super().__init__(sentencepiece_model_file="", extra_ids=extra_ids)
        self._path = path
        self._tf_tokenizer = None

    def __reduce__(self) -> tuple[Any, ...]:
        # gin copies its values deeply; that must not read files.
        return type(self), (self._path, self._extra_ids)

    @property
    def sentencepiece_model_file(self) -> str:
        if not self._sentencepiece_model_file:
            # Tasks make their vocabulary before a gin file's bindings are read: ask for them now.
            path = self._path or t5_vocabulary()._path
            self._sentencepiece_model_file = str(find_model(path))
        return self._sentencepiece_model_file

    def _model_context(self) -> Any:
        _ = self.sentencepiece_model_file
        return super()._model_context()

    @property
    def tf_tokenizer(self) -> Any:
        # SeqIO makes one for every call; each holds the whole model, twice for every task.
        if self._tf_tokenizer is None:
            with tf.init_scope():
                self._tf_tokenizer = super().tf_tokenizer
        return self._tf_tokenizer

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, seqio.SentencePieceVocabulary):
            return False
        if isinstance(other, T5Vocabulary) and other.__reduce__() == self.__reduce__():
            return True
        if other.extra_ids != self.extra_ids:
            return False
        mine, theirs = self.sentencepiece_model_file, other.sentencepiece_model_file
        if mine == theirs or (theirs == GCS_PATH and Path(mine).name == MODEL_NAME):
            return True
        return other.sp_model == self.sp_model

    __hash__ = None


@gin.configurable(module="t0x.vocabulary")
def t5_vocabulary(path: str | None = None, extra_ids: int = 0) -> T5Vocabulary:
    """The vocabulary of T5 1.1 and T0: 32,000 pieces and the 100 sentinels its file ends with.

    Args:
      path: a SentencePiece model; None looks in the places named at the head of this module.
      extra_ids: sentinels to add to those in the file (0 for T5's file, 100 for one without).
    """
    return T5Vocabulary(path, extra_ids)


def find_model(path: str | None = None) -> str:
    """File of the vocabulary, downloaded where it is found nowhere.

    Raises:
      FileNotFoundError: a named file is not there, or the download failed; one line.
    """
    for name, given in (("path", path), ("$T0X_VOCABULARY", os.environ.get("T0X_VOCABULARY"))):
        # T5's own bucket is what the search below ends with: a copy at hand is taken first.
        if given and given != GCS_PATH:
            if "://" not in given and not Path(given).is_file():
                raise FileNotFoundError(f"vocabulary: {name} names {given}, which is no file")
            return given
    tried = []
    for folder in _folders():
        models = sorted(folder.glob("*.model"))
        if len(models) == 1:
            return str(models[0])
        tried.append(f"{folder} ({len(models)} *.model files)")
    return _download(tried)


def _folders() -> list[Path]:
    data = os.environ.get("T0X_DATA_DIR")
    beside = [Path(data, "vocab"), Path(data).absolute().parent / "vocab"] if data else []
    return [*beside, _cache_folder()]


def _cache_folder() -> Path:
    return cache_directory() / "vocab"


def _download(tried: list[str]) -> str:
    target = _cache_folder() / MODEL_NAME
    logging.info("downloading T5's vocabulary to %s", target)
    try:
        with urllib.request.urlopen(DOWNLOAD_URL, timeout=DOWNLOAD_TIMEOUT_SECONDS) as answer:
            contents = answer.read()
    except OSError as error:
        raise FileNotFoundError(
            f"T5's vocabulary is in none of {', '.join(tried)}, and {GCS_PATH} is out of reach "
            f"({error}); {FIXES}"
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may arrive here at once; the rename makes each see a whole file.
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as partial:
        partial.write(contents)
    os.replace(partial.name, target)
    return str(target)
