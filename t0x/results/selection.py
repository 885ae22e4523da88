"""Choosing a checkpoint by what rank classification found: the highest mean over tasks.

T0 takes the checkpoint that does best on the validation splits of its training datasets (section
5.2). Results are those that evaluation leaves in its output directory (see `t0x.results.format`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from etils import epath

from t0x.results.format import FOLDER, Summary, log_dir_of, parse_step, parse_summary, summary_path
from t5x.checkpoints.directories import all_steps


@dataclass(frozen=True)
class Candidate:
    """A checkpoint, or the results of one that is no longer there.

    Args:
      step: its step.
      accuracies: of the tasks that count and have a result, 0 to 1.
      missing: tasks that count and have none.
      kept: whether the checkpoint is there.
    """

    step: int
    accuracies: Mapping[str, float]
    missing: tuple[str, ...]
    kept: bool

    @property
    def mean(self) -> float | None:
        """Mean accuracy over tasks, None unless all of them have a result."""
        if self.missing or not self.accuracies:
            return None
        return sum(self.accuracies.values()) / len(self.accuracies)


def read_candidates(
    model_dir: str | Path,
    tasks: Iterable[str],
    output_dir: str | Path | None = None,
    common: bool = False,
) -> list[Candidate]:
    """The checkpoints of a run and what is known of them, by step.

    Args:
      model_dir: holds checkpoint_N; local or any path of etils.epath.
      tasks: those whose mean counts.
      output_dir: EVAL_OUTPUT_DIR of the evaluation, where it was not the model's directory.
      common: count only the tasks for which every checkpoint with results has one.

    Raises:
      FileNotFoundError: there is no such directory, or no complete checkpoint in it.
      ValueError: a task was evaluated on other rows in one step than in another; a torn file.
    """
    tasks = list(tasks)
    kept = _steps(epath.Path(model_dir))
    log_dir = log_dir_of(output_dir or model_dir)
    found = {step: _read_step(log_dir, step, tasks) for step in _result_steps(log_dir)}
    _require_same_rows(found)
    if common and any(found.values()):
        tasks = [task for task in tasks if all(task in one for one in found.values() if one)]
    return [
        Candidate(
            step,
            {task: found[step][task].accuracy for task in tasks if task in found.get(step, {})},
            tuple(task for task in tasks if task not in found.get(step, {})),
            step in kept,
        )
        for step in sorted({*kept, *found})
    ]


def choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """The checkpoint with the highest mean, the earliest where means tie; None: no complete one."""
    ready = [one for one in candidates if one.kept and one.mean is not None]
    return max(ready, key=lambda one: (one.mean, -one.step), default=None)


def evaluation_command(
    model_dir: str | Path, mixture: str, steps: Sequence[int], gin_file: str
) -> str:
    """The command that evaluates checkpoints of a run on a mixture."""
    if len(steps) == 1:
        path = f"{model_dir}/checkpoint_{steps[0]}"
        which = (
            f"""--gin.CHECKPOINT_PATH='"{path}"' --gin.RestoreCheckpointConfig.mode='"specific"'"""
        )
    else:
        which = """--gin.RestoreCheckpointConfig.mode='"all"'"""
    return (
        f"""python -m t5x.eval --gin_file={gin_file} --gin.MODEL_DIR='"{model_dir}"' """
        f"""--gin.MIXTURE_OR_TASK_NAME='"{mixture}"' {which}"""
    )


def _steps(model_dir: epath.Path) -> list[int]:
    """Steps of complete checkpoints: one that is half written cannot be the best."""
    if not model_dir.is_dir():
        raise FileNotFoundError(f"{model_dir}: no such directory; give the MODEL_DIR of a run")
    steps = all_steps(model_dir)
    if not steps:
        raise FileNotFoundError(
            f"{model_dir}: no complete checkpoint_N in it; give the MODEL_DIR of a run"
        )
    return steps


def _result_steps(log_dir: str) -> list[int]:
    folder = epath.Path(log_dir) / FOLDER
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    steps = (parse_step(name) for name in names)
    return sorted(step for step in steps if step is not None and step >= 0)


def _read_step(log_dir: str, step: int, tasks: Iterable[str]) -> dict[str, Summary]:
    paths = {task: epath.Path(summary_path(log_dir, step, task)) for task in tasks}
    return {
        task: parse_summary(path.read_text(), str(path))
        for task, path in paths.items()
        if path.exists()
    }


def _require_same_rows(found: Mapping[int, Mapping[str, Summary]]) -> None:
    first: dict[str, tuple[int, tuple[int, str]]] = {}
    for step, summaries in found.items():
        for task, summary in summaries.items():
            rows = (summary.examples, summary.split)
            then, known = first.setdefault(task, (step, rows))
            if known != rows:
                raise ValueError(
                    f"{task} was evaluated on {known[0]} rows of {known[1]} at step {then} and on "
                    f"{rows[0]} of {rows[1]} at step {step}: evaluate both alike"
                )
