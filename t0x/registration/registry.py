"""The prompted tasks registered so far, by name."""

from dataclasses import dataclass, field

from t0x.prompts.task_names import SCORE_EVAL as SCORE_EVAL
from t0x.prompts.task_names import task_name as task_name
from t0x.registration.dataset import TaskInfo


@dataclass(frozen=True)
class DatasetTasks:
    """Names of a dataset's tasks.

    `train` is what training may see: empty for a held-out dataset, without held-out prompts.
    `score_eval` has the rank classification twin of every prompt with answer choices, held out or
    not; `all` every other task.
    """

    train: list[str] = field(default_factory=list)
    score_eval: list[str] = field(default_factory=list)
    all: list[str] = field(default_factory=list)


TASKS: dict[str, TaskInfo] = {}


def task_info(name: str) -> TaskInfo:
    """Metadata of a task registered here.

    Raises:
      LookupError: it was registered by somebody else or not at all.
    """
    if name not in TASKS:
        raise LookupError(f"task {name!r} was not registered by t0x.registration")
    return TASKS[name]


def task_infos() -> dict[str, TaskInfo]:
    """All tasks registered here, by name, in the order of registration."""
    return dict(TASKS)
