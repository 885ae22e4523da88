"""Prepared stores for tests."""

import numpy as np
import pytest

from t5x.data import records, store

FEATURE = store.Feature(vocabulary="0" * 64, vocabulary_size=1000, add_eos=True)


@pytest.fixture(scope="session")
def write_store():
    """Writes a store of {task: [(inputs, targets), …]}; see `_write`."""
    return _write


def _write(directory, tasks, rates=None, shards=2, text=False):
    entries = []
    for task, examples in tasks.items():
        written, lengths = [], []
        for number in range(shards):
            with records.ShardWriter(
                directory, task, "train", number, shards, "uint16", text
            ) as writer:
                for inputs, targets in examples[number::shards]:
                    writer.write(inputs, targets, (str(inputs), str(targets)) if text else None)
            written.append(writer.shard)
            lengths.append(writer.lengths)
        lengths = np.concatenate(lengths)
        entry = store.Entry(
            task=task,
            split="train",
            examples=len(examples),
            shards=tuple(written),
            lengths_sha256=store.write_lengths(directory, task, "train", lengths),
            template_hash="0",
            rate=float((rates or {}).get(task, len(examples))),
            passes=1.0,
            source_rows=len(examples) + 1,
            skipped={"no text": 1},
            truncated_variables=None,
            input_lengths=store.count_lengths(lengths[:, 0]),
            target_lengths=store.count_lengths(lengths[:, 1]),
        )
        store.write_entry(directory, entry)
        entries.append(entry)
    manifest = store.Manifest(
        mixture="fruit",
        token_dtype="uint16",
        text=text,
        features=dict.fromkeys(store.FEATURES, FEATURE),
        entries=tuple(entries),
        missing=(),
    )
    store.write_manifest(directory, manifest)
    return manifest
