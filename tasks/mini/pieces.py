"""Makes vocabularies/mini.model: a SentencePiece model in which every word of Mini-P3 is a piece.

    python -m t0x.tasks.mini.pieces [FILE]

Byte-pair merges over prompted rows, carried on until words are whole; single bytes stand for what
Mini-P3 never says. The same rows and prompts give the same pieces.
"""

import io
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from t0x.prompts.files import read_templates
from t0x.tasks.mini import datasets

PROMPTS = Path(__file__).parent.parent / "prompts" / "mini"
MODEL = Path(__file__).parent.parent / "vocabularies" / "mini.model"
# A multiple of 128, as the model's embedding wants it.
SIZE = 1792
# Line breaks and tabs become spaces, so that a word is one piece wherever it stands.
NORMALISATION = "".join(f"{ord(character):X}\t20\n" for character in "\n\r\t")


def prompted_texts(dataset: datasets.MiniDataset, split: str) -> Iterator[str]:
    """Every prompt of the dataset over the split's rows: input, target and answer choices."""
    templates = read_templates(PROMPTS / dataset.name / "templates.yaml").values()
    for row in datasets.rows(dataset.name, split):
        for template in templates:
            yield " ".join([*template.apply(row), *(template.get_answer_choices_list(row) or [])])


def all_texts() -> Iterator[str]:
    """Every prompt of every dataset over all its rows."""
    for dataset in datasets.DATASETS:
        for split in dataset.splits:
            yield from prompted_texts(dataset, split)


def build(texts: Iterable[str]) -> bytes:
    """The serialised SentencePiece model of the texts."""
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write(NORMALISATION)
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=SIZE,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_tsv=rules.name,
            num_threads=1,
            minloglevel=2,
        )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    # The rules themselves are in the model; where their file lay would change it from run to run.
    proto.normalizer_spec.ClearField("normalization_rule_tsv")
    return proto.SerializeToString(deterministic=True)


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else MODEL
    path.write_bytes(build(all_texts()))
    print(f"{path}: {SIZE} pieces")
