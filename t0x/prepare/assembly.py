"""Entries and the manifest, from the records of what was written."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from etils import epath

from t0x.prepare import shards
from t0x.prepare.plan import SourcePlan
from t0x.prepare.request import Request
from t0x.prepare.sources import Source
from t5x.data import store


def assemble(
    request: Request,
    sources: Mapping[str, Source],
    plans: Mapping[str, SourcePlan],
    missing: Mapping[str, store.Missing],
) -> store.Manifest:
    """Writes the lengths and entry of every task that is whole, then the manifest.

    Args:
      request: what is prepared.
      sources: by label.
      plans: of the sources that could be read, by label.
      missing: tasks that could not be written, by name.

    Raises:
      store.StoreError: a shard has no record.
    """
    entries, missing = {}, dict(missing)
    for label, plan in plans.items():
        recipes = shards.hash_recipes(request, sources[label], plan)
        for name in sources[label].tasks:
            if name in missing:
                continue
            entry = _assemble_task(request, name, plan, recipes[name])
            if entry.examples:
                entries[name] = entry
            else:
                reasons = ", ".join(f"{n} ({why})" for why, n in entry.skipped.items())
                reason = (
                    f"none of {entry.source_rows} rows gives an example: {reasons or 'no rows'}"
                )
                missing[name] = store.Missing(
                    task=name, split=request.split, rate=entry.rate, reason=reason
                )
    features = shards.describe_features(next(iter(sources.values())))
    kept_entries, kept_missing = _other_splits(request)
    manifest = store.Manifest(
        mixture=request.mixture,
        token_dtype=shards.token_dtype(features),
        text=request.keep_text,
        features=features,
        entries=(*kept_entries, *(entries[name] for name in sorted(entries))),
        missing=(*kept_missing, *(missing[name] for name in sorted(missing))),
    )
    store.write_manifest(request.directory, manifest)
    return manifest


def _assemble_task(request: Request, task: str, plan: SourcePlan, recipe: str) -> store.Entry:
    pieces = []
    for shard in range(plan.shards):
        piece = shards.read_piece(request, task, shard)
        if piece is None or piece.recipe != recipe:
            raise store.StoreError(f"{task}: shard {shard} of {request.directory} was not written")
        pieces.append(piece)
    lengths = np.concatenate([piece.lengths for piece in pieces])
    skipped = sum((Counter(piece.skipped) for piece in pieces), Counter())
    examples, chosen = len(lengths), plan.tasks[task]
    entry = store.Entry(
        task=task,
        split=request.split,
        examples=examples,
        shards=tuple(piece.shard for piece in pieces),
        lengths_sha256=store.write_lengths(request.directory, task, request.split, lengths),
        template_hash=recipe,
        rate=chosen.rate,
        passes=chosen.draws / examples if examples else 0.0,
        source_rows=sum(piece.rows for piece in pieces),
        skipped=dict(skipped),
        truncated_variables=None,
        input_lengths=store.count_lengths(lengths[:, 0]),
        target_lengths=store.count_lengths(lengths[:, 1]),
    )
    store.write_entry(request.directory, entry)
    return entry


def _other_splits(
    request: Request,
) -> tuple[list[store.Entry], list[store.Missing]]:
    """What the store has of other splits of the same mixture."""
    if not (epath.Path(request.directory) / store.MANIFEST).exists():
        return [], []
    before = store.read_manifest(request.directory)
    return (
        [entry for entry in before.entries if entry.split != request.split],
        [missing for missing in before.missing if missing.split != request.split],
    )


def remove_leftovers(request: Request, manifest: store.Manifest) -> None:
    """Removes what killed writers and earlier plans left beside the shards of the split."""
    for entry in manifest.of_split(request.split):
        folder = store.place_entry(request.directory, entry.task, entry.split).parent
        kept = {shard.file for shard in entry.shards}
        for file in folder.glob(f"{entry.split}-*.array_record"):
            if file.name not in kept:
                file.unlink()
        for partial in folder.glob(".partial-*"):
            partial.rmtree()
