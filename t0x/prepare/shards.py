"""Shards of examples, and a record beside each of what was written: what a restart goes by.

    DIR/.work/SPLIT/plan.json                    which rows are written
    DIR/.work/SPLIT/surveys/SOURCE.json          what a few rows of a source told
    DIR/.work/SPLIT/failures/SOURCE.json         why a source could not be read
    DIR/.work/SPLIT/shards/TASK/NNNNN.json       recipe, file, checksum, lengths, skipped rows

Whoever does a piece of work writes its record last and whole: processes and machines tell each
other nothing else.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from etils import epath

from t0x.prepare.plan import SourcePlan, choose_rows
from t0x.prepare.request import Request
from t0x.prepare.sources import Source, SourceError
from t0x.registration.skipped import counted
from t5x.data.records import ShardWriter
from t5x.data.store import Feature, Shard, choose_token_dtype, hash_file, name_shard, place_entry
from t5x.data.vocabularies import hash_vocabulary

WORK = ".work"
# Rows between two reports of progress.
_REPORTED = 500


@dataclass(frozen=True)
class Piece:
    """What is known of a shard that was written.

    Attributes:
      recipe: hash of what its examples come of.
      shard: file, examples, bytes, checksum.
      rows: that were rendered.
      skipped: rows without an example, by reason.
      lengths: uint32 (examples, 2).
    """

    recipe: str
    shard: Shard
    rows: int
    skipped: dict[str, int]
    lengths: np.ndarray


def place(directory: str, split: str, kind: str, name: str) -> epath.Path:
    """Where a record of work lies."""
    safe = re.sub(r"[^\w.-]", "_", name)
    return epath.Path(directory) / WORK / split / kind / f"{safe}.json"


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a record whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, ensure_ascii=False)
    if "://" in os.fspath(path):  # an object of a bucket appears whole
        path.write_text(text)
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    os.replace(beside, path)


def read_json(path: epath.Path) -> Any:
    """A record, None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def describe_features(source: Source) -> dict[str, Feature]:
    """The store's features, as the source's first task has them."""
    features = next(iter(source.tasks.values())).output_features
    return {
        name: Feature(
            vocabulary=hash_vocabulary(feature.vocabulary),
            vocabulary_size=feature.vocabulary.vocab_size,
            add_eos=feature.add_eos,
        )
        for name, feature in sorted(features.items())
    }


def token_dtype(features: Mapping[str, Feature]) -> str:
    """The store's dtype of tokens."""
    return choose_token_dtype(max(feature.vocabulary_size for feature in features.values()))


def hash_recipes(request: Request, source: Source, plan: SourcePlan) -> dict[str, str]:
    """For each task of a source a hash of what its examples come of: prompt, features, rows."""
    features = {name: asdict(feature) for name, feature in describe_features(source).items()}
    hashes = {}
    for name in source.tasks:
        chosen = plan.tasks[name]
        rows = [plan.rows, plan.shards, request.seed, chosen.start, chosen.count]
        parts = [source.identity(name), features, request.keep_text, rows]
        text = json.dumps(parts, sort_keys=True)
        hashes[name] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return hashes


def place_piece(request: Request, task: str, shard: int) -> epath.Path:
    """Where the record of a shard lies."""
    folder = place(request.directory, request.split, "shards", task).with_suffix("")
    return folder / f"{shard:05d}.json"


def read_piece(request: Request, task: str, shard: int) -> Piece | None:
    """The record of a shard, None where there is none."""
    data = read_json(place_piece(request, task, shard))
    if data is None:
        return None
    lengths = np.frombuffer(base64.b85decode(data.pop("lengths")), "<u4").reshape(-1, 2)
    return Piece(shard=Shard(**data.pop("shard")), lengths=lengths, **data)


def is_whole(request: Request, task: str, shard: int, count: int, recipe: str) -> int | None:
    """Rows of a shard that was written by this recipe and is undamaged; None if there is none."""
    piece = read_piece(request, task, shard)
    if piece is None or piece.recipe != recipe:
        return None
    folder = place_entry(request.directory, task, request.split).parent
    path = folder / name_shard(request.split, shard, count)
    return piece.rows if hash_file(path) == piece.shard.sha256 else None


def write_shards(
    request: Request,
    source: Source,
    plan: SourcePlan,
    shards: Sequence[int],
    report: Callable[[int, int], None],
) -> None:
    """Writes some shards of all tasks of a source, but for those that are there and undamaged.

    Args:
      request: what is prepared.
      source: not opened if there is nothing to do.
      plan: of the source.
      shards: which of the plan's.
      report: called with numbers of rows that are done, and that were before.

    Raises:
      SourceError: the rows cannot be read, or are not as many as planned.
    """
    recipes = hash_recipes(request, source, plan)
    todo: dict[str, list[int]] = {}
    for shard in shards:
        for name in source.tasks:
            done = is_whole(request, name, shard, plan.shards, recipes[name])
            if done is None:
                todo.setdefault(name, []).append(shard)
            else:
                report(done, done)
    if not todo:
        return
    rows = len(source)
    if rows != plan.rows:
        raise SourceError(
            f"{source.label} has {rows} rows, {plan.rows} were planned: it has changed; "
            "--overwrite prepares it anew"
        )
    for shard in shards:
        names = [name for name in todo if shard in todo[name]]
        if names:
            _write_shard(request, source, plan, shard, {n: recipes[n] for n in names}, report)


def _write_shard(
    request: Request,
    source: Source,
    plan: SourcePlan,
    shard: int,
    recipes: Mapping[str, str],
    report: Callable[[int, int], None],
) -> None:
    """Renders the rows of one shard for the tasks with a recipe; writes files, then records."""
    dtype = token_dtype(describe_features(source))
    chosen = {name: choose_rows(plan, name, shard, source.label, request.seed) for name in recipes}
    arguments = (request.split, shard, plan.shards, dtype, request.keep_text)
    done = 0
    with counted() as skipped:
        with contextlib.ExitStack() as stack:
            writers = {
                name: stack.enter_context(ShardWriter(request.directory, name, *arguments))
                for name in recipes
            }
            for name, _, example in source.read(chosen):
                if example is not None:
                    texts = example.texts if request.keep_text else None
                    writers[name].write(example.inputs, example.targets, texts)
                done += 1
                if done % _REPORTED == 0:
                    report(_REPORTED, 0)
        bad = source.bad_rows() if shard == 0 else {}
        for name, recipe in recipes.items():
            reasons = {reason: n for (task, reason), n in sorted(skipped.items()) if task == name}
            _write_piece(
                request,
                name,
                shard,
                Piece(
                    recipe=recipe,
                    shard=writers[name].shard,
                    rows=len(chosen[name]) + sum(bad.values()),
                    skipped={**reasons, **bad},
                    lengths=writers[name].lengths,
                ),
            )
    report(done % _REPORTED, 0)


def _write_piece(request: Request, task: str, shard: int, piece: Piece) -> None:
    lengths = base64.b85encode(piece.lengths.astype("<u4").tobytes()).decode()
    write_json(
        place_piece(request, task, shard),
        {
            "recipe": piece.recipe,
            "shard": asdict(piece.shard),
            "rows": piece.rows,
            "skipped": piece.skipped,
            "lengths": lengths,
        },
    )
