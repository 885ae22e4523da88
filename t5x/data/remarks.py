"""What data sources have to say of the rows that a run read, at its end."""

from typing import Any

from t5x.run.console import console


def say_remarks(*cfgs: Any) -> None:
    """Prints the remarks of all sources of some datasets, as every process has them.

    Args:
      *cfgs: `utils.DatasetConfig`s, or None. A task's source remarks by a method `remarks()` that
        returns lines: which rows it left out and why, say.
    """
    import seqio

    from t5x.data.datasets import get_provider

    said = set()
    for cfg in filter(None, cfgs):
        for task in seqio.get_subtasks(get_provider(cfg)):
            remarks = getattr(getattr(task, "source", None), "remarks", tuple)
            if task.name not in said:
                said.add(task.name)
                for line in remarks():
                    console.say(line, by_all=True)
