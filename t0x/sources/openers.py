"""Rows of a dataset by (dataset, subset, split): local files, then prepared TFDS, then the hub.

Every opener returns a `Rows`: a sequence with random access whose elements are plain dicts in the
schema the dataset has on the Hugging Face hub. Nothing is read before the first `len` or `[i]`
except what is needed to know whether the split is there at all.

Local files lie in `$T0X_DATA_DIR/<dataset>/<subset or default>`, named as `t0x.sources.folders`
says or, of a manual download, as its owners name them; a dataset without subsets may lie in
`$T0X_DATA_DIR/<dataset>` itself. Where a source has another schema than the hub
had when the prompts were written, `t0x.sources.schemas` says so.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gin

from t0x.sources import folders, schemas
from t0x.sources.files import Row, Rows, TfdsRows, open_files
from t0x.sources.values import as_plain, field_name

DATA_DIR_VARIABLE = "T0X_DATA_DIR"
HUB_FIELDS = "fields as on the hub), or pip install 't0x[hub]' on a machine with a network"


@dataclass(frozen=True)
class Request:
    """What is looked for; `hub_id` is where the hub keeps the dataset today."""

    dataset: str
    subset: str | None
    split: str
    hub_id: str
    bad_lines: str

    def __str__(self) -> str:
        return f"{self.dataset}{'/' + self.subset if self.subset else ''}, split {self.split}"


def _local_folders(dataset: str, subset: str | None) -> list[Path]:
    """Folders that may hold the local rows, in order of preference."""
    root = os.environ.get(DATA_DIR_VARIABLE)
    if not root:
        return []
    folder = Path(root, dataset, subset or "default")
    return [folder] if subset else [folder, folder.parent]


def local_splits(dataset: str, subset: str | None) -> dict[str, tuple[Path, ...]]:
    """Splits with local rows and their files; empty where there are none."""
    for folder in _local_folders(dataset, subset):
        manual = schemas.manual_files(dataset, subset, folder)
        found = {split: (path,) for split, path in manual.items()} | folders.find_splits(folder)
        if found:
            return found
    return {}


def _open_local(request: Request) -> Rows:
    places = _local_folders(request.dataset, request.subset)
    if not places:
        raise FileNotFoundError(f"local files (${DATA_DIR_VARIABLE} is not set)")
    found = local_splits(request.dataset, request.subset)
    if request.split not in found:
        there = folders.describe(next((place for place in places if place.is_dir()), places[0]))
        names = folders.expected(request.split)
        raise FileNotFoundError(f"local files (in {places[0]} no {names}; {there})")
    paths = found[request.split]
    rows = open_files(paths, request.bad_lines)
    manual = schemas.manual(request.dataset, request.subset)
    if manual is not None and paths[0].suffix == ".csv":
        return schemas.AdaptedRows(rows, manual.adapt)
    return _adapted(rows, schemas.on_hub(request.dataset, request.subset).adapt)


def _adapted(rows: Rows, adapt: schemas.Adapter | None) -> Rows:
    return rows if adapt is None else schemas.AdaptedRows(rows, adapt)


def _open_tfds(request: Request) -> Rows:
    from tensorflow_datasets.core.utils import conversion_utils

    def tfds_name(name: str | None) -> str | None:
        return name and conversion_utils.to_tfds_name(name)

    root = _tfds_root()
    tried = []
    names = [request.hub_id]
    today = schemas.on_hub(request.dataset, request.subset)
    plain = schemas.in_tfds(request.dataset, request.subset, request.split)
    if plain is not None:
        place, split = plain
        tried.append(place.name)
        names.append(request.dataset)  # what the hub once called it
        rows = _prepared(root, place.name, place.config, split)
        if rows is not None:
            return _adapted(rows, place.adapt or today.adapt)
    adapt = schemas.from_tfds_of_hub(request.dataset) or today.adapt
    for name in dict.fromkeys(map(tfds_name, names)):
        tried.append(name)
        rows = _prepared(root, name, tfds_name(today.config), tfds_name(request.split))
        if rows is not None:
            return _adapted(rows, adapt)
    raise FileNotFoundError(f"TFDS ({' or '.join(dict.fromkeys(tried))} is not prepared in {root})")


def _tfds_root() -> Path:
    """Where prepared datasets are: --tfds_data_dir, $TFDS_DATA_DIR, ~/tensorflow_datasets."""
    import seqio
    from etils import epath

    override = seqio.utils._TFDS_DATA_DIR_OVERRIDE  # what seqio.set_tfds_data_dir_override sets
    root = override or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return epath.Path(root).expanduser()


def _prepared(root: Path, name: str, config: str | None, split: str) -> Rows | None:
    """A split of a builder's newest prepared version, None where there is none.

    A builder asked for without a configuration may have been prepared with its only one.
    """
    import tensorflow_datasets as tfds

    folder = root / name / (config or "")
    if not folder.is_dir():
        return None
    infos = list(folder.glob("*/dataset_info.json"))
    if not infos and config is None:
        infos = list(folder.glob("*/*/dataset_info.json"))
        if len({path.parent.parent for path in infos}) > 1:
            return None
    if not infos:
        return None
    newest = max((path.parent for path in infos), key=lambda path: tfds.core.Version(path.name))
    builder = tfds.builder_from_directory(newest)
    return TfdsRows(builder, split) if split in builder.info.splits else None


# Where the hub keeps what it made of datasets that are a script, which `datasets` no longer runs.
_CONVERTED = "refs/convert/parquet"


def _open_hub(request: Request) -> Rows:
    try:
        import datasets
    except ImportError as error:
        raise FileNotFoundError("the hub (needs: pip install 't0x[hub]')") from error

    today = schemas.on_hub(request.dataset, request.subset)
    try:
        try:
            rows = datasets.load_dataset(request.hub_id, today.config, split=request.split)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            files = _converted_files(request.hub_id, today.config, request.split)
            rows = datasets.load_dataset("parquet", data_files=files, split="train")
    except Exception as error:  # its many kinds have no common base; the text is passed on
        cause = " ".join(str(error).split())
        raise FileNotFoundError(f"the hub ({request.hub_id}: {cause})") from error
    return _adapted(rows, today.adapt)


def _converted_files(hub_id: str, config: str | None, split: str) -> list[str]:
    """The hub's own Parquet files of one split of a dataset that is a script there.

    They are named one by one: `datasets` would take all configurations of that branch for one
    dataset, and a split of which the hub converted only the first gigabytes for the whole.

    Raises:
      ValueError: there are none, or not of the whole split.
    """
    import huggingface_hub

    paths = huggingface_hub.list_repo_files(hub_id, repo_type="dataset", revision=_CONVERTED)
    found = [path.split("/") for path in sorted(paths) if path.endswith(".parquet")]
    configs = sorted({parts[0] for parts in found})
    config = configs[0] if config is None and len(configs) == 1 else config
    files = ["/".join(parts) for parts in found if parts[:-1] == [config, split]]
    if not files:
        if [config, f"partial-{split}"] in [parts[:-1] for parts in found]:
            raise ValueError(f"it has converted only a part of {config}/{split}")
        there = sorted({"/".join(parts[:-1]) for parts in found})
        raise ValueError(f"it is a script, and converted are only {', '.join(there) or 'none'}")
    return [f"hf://datasets/{hub_id}@{_CONVERTED}/{path}" for path in files]


OPENERS: dict[str, Callable[[Request], Rows]] = {
    "local": _open_local,
    "tfds": _open_tfds,
    "hub": _open_hub,
}


@gin.configurable(module="t0x.sources")
@dataclass(frozen=True)
class Settings:
    """Where rows come from.

    Args:
      order: names of OPENERS in the order in which they are tried.
      dataset_order: the same for single datasets by name, instead of `order`.
      bad_lines: "error" or "skip" lines that are no JSON object, see `JsonRows`.
    """

    __module__ = "t0x.sources"  # as gin files, and config.gin, name it

    order: Sequence[str] = tuple(OPENERS)
    dataset_order: Mapping[str, Sequence[str]] = field(default_factory=dict)
    bad_lines: str = "error"


def open_rows(
    dataset: str,
    subset: str | None,
    split: str,
    hub_id: str | None = None,
    settings: Settings | None = None,
) -> Rows:
    """Opens a split from the first source that has it.

    Args:
      dataset: name under which promptsource knows the dataset.
      subset: its configuration, None where it has one only.
      split: as named on the hub.
      hub_id: where the hub keeps it today, where that differs from `dataset`.
      settings: what gin says by default.

    Raises:
      FileNotFoundError: no source has it; names what was tried and how to get it.
      ValueError: an unknown source name, or local rows that cannot be read.
    """
    # Asked for here and not by a binding of this function: gin would add lines to its errors.
    settings = settings or Settings()
    request = Request(dataset, subset, split, hub_id or dataset, settings.bad_lines)
    tried = []
    for source in settings.dataset_order.get(dataset, settings.order):
        if source not in OPENERS:
            raise ValueError(
                f"t0x.sources.Settings.order: {source!r} is none of {', '.join(OPENERS)}"
            )
        try:
            return OPENERS[source](request)
        except FileNotFoundError as error:
            tried.append(str(error))
    manual = schemas.manual(dataset, subset)
    place = f"${DATA_DIR_VARIABLE}/{dataset}/{subset or 'default'}/{split}.jsonl"
    how = manual.how if manual else f"put them at {place} (one JSON object a line, {HUB_FIELDS}"
    raise FileNotFoundError(f"no rows for {request}; tried {', '.join(tried) or 'nothing'}; {how}")


def underscore_fields(row: Row) -> dict[str, Any]:
    """The row as templates see it: plain values, top-level names that Jinja can name.

    Raises:
      SchemaError: two fields would have one name.
    """
    fields = {field_name(name): as_plain(value) for name, value in row.items()}
    if len(fields) != len(row):
        names = ", ".join(name for name in row if field_name(name) != name)
        raise schemas.SchemaError(f"{names}: another field has that name with underscores")
    return fields
