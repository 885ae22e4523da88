"""WMT's translation tasks that T5X's examples train on, under the names of the t5 package.

Read through TensorFlow Datasets; metric: BLEU by sacreBLEU. The t5 package's own tasks of these
names, if it is imported first, stay.
"""

import functools
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

# Name → TFDS dataset, source and target language there.
TASKS = {
    "wmt_t2t_ende_v003": ("wmt_t2t_translate/de-en:1.0.0", "en", "de"),
    "wmt14_enfr_v003": ("wmt14_translate/fr-en:1.0.0", "en", "fr"),
    "wmt19_ende_v003": ("wmt19_translate/de-en:1.0.0", "en", "de"),
}
LANGUAGES = {"de": "German", "en": "English", "fr": "French"}
VOCABULARY = "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"


@seqio.map_over_dataset
def translate(row: Mapping[str, tf.Tensor], source: str, target: str) -> dict[str, tf.Tensor]:
    """{"en": …, "de": …} → "translate English to German: …" (T5, arXiv 1910.10683, appendix D)."""
    prefix = f"translate {LANGUAGES[source]} to {LANGUAGES[target]}: "
    return {"inputs": tf.strings.join([prefix, row[source]]), "targets": row[target]}


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU of sacreBLEU with the tokenizer of WMT."""
    import sacrebleu

    score = sacrebleu.corpus_bleu(list(predictions), [list(targets)], tokenize="intl")
    return {"bleu": score.score}


def register() -> None:
    """Registers the tasks that nobody has registered."""
    vocabulary = seqio.SentencePieceVocabulary(VOCABULARY)
    for name, (dataset, source, target) in TASKS.items():
        if name in seqio.TaskRegistry.names():
            continue
        seqio.TaskRegistry.add(
            name,
            source=seqio.TfdsDataSource(tfds_name=dataset),
            preprocessors=[
                functools.partial(translate, source=source, target=target),
                seqio.preprocessors.tokenize,
                seqio.CacheDatasetPlaceholder(),
                seqio.preprocessors.append_eos_after_trim,
            ],
            output_features={
                "inputs": seqio.Feature(vocabulary, required=False),
                "targets": seqio.Feature(vocabulary),
            },
            metric_fns=[bleu],
        )


register()
