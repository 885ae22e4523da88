"""Names of the tasks that prompts become."""

import re

SCORE_EVAL = "_score_eval"  # ends the name of a prompt's rank classification twin


def task_name(dataset: str, subset: str | None, template: str) -> str:
    """P3's name of a (dataset, prompt) pair: every run of other characters becomes one _."""
    return re.sub(r"[^\w.]+", "_", "_".join(filter(None, (dataset, subset, template))))
