"""What is asked of `t0x prepare`, and the registry it needs."""

import functools
import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """How much a training run reads.

    Attributes:
      steps: optimizer steps.
      batch_size: rows of a batch.
      inputs, targets: longest of each in a row, in tokens.
      pack: whether a row holds several examples.
    """

    steps: int
    batch_size: int
    inputs: int
    targets: int
    pack: bool = True


@dataclass(frozen=True)
class Request:
    """What to prepare. Pickles: workers elsewhere register the same tasks by it.

    Attributes:
      mixture: a registered mixture or task.
      directory: the store, local or on a bucket.
      split: of every task.
      run: what reads the store; None writes every row.
      most_rows: of a task, however many the run reads; None for no such limit.
      seed: of the choice of rows.
      keep_text: whether records keep their texts.
      caches: folders of SeqIO's cached tasks to take tokens from.
      modules: to import for what they register.
      gin_files, gin_bindings: settings of vocabulary and sources.
    """

    mixture: str
    directory: str
    split: str = "train"
    run: Run | None = None
    most_rows: int | None = None
    seed: int = 0
    keep_text: bool = False
    caches: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    gin_files: tuple[str, ...] = ()
    gin_bindings: tuple[str, ...] = ()


@functools.cache
def configure(gin_files: tuple[str, ...], gin_bindings: tuple[str, ...]) -> None:
    """Reads a run's gin files for what they bind and register, once."""
    if gin_files:
        from t5x.run import settings

        settings.read(gin_files, gin_bindings)


def register(request: Request) -> None:
    """Registers the request's tasks, where the process has not done so."""
    configure(request.gin_files, request.gin_bindings)
    for module in request.modules:
        importlib.import_module(module)


def read_run(gin_files: tuple[str, ...], gin_bindings: tuple[str, ...]) -> dict[str, Any]:
    """What a training run's gin file says: mixture, split, module, seed, and its `Run`.

    Builds what the file binds, JAX's devices among it: for a process of its own.

    Raises:
      FileNotFoundError, ValueError: see `t5x.gin_utils.parse_gin_flags`.
    """
    from t0x.plan import step
    from t5x.run import settings

    settings.read(gin_files, gin_bindings)
    run = settings.arguments("train")
    config = run["train_dataset_cfg"]
    return {
        "mixture": config.mixture_or_task_name,
        "split": config.split,
        "module": config.module,
        "run": Run(
            steps=step.count_steps(run),
            batch_size=config.batch_size,
            inputs=config.task_feature_lengths["inputs"],
            targets=config.task_feature_lengths["targets"],
            pack=config.pack,
        ),
    }
