"""In place of the tasks of T5X's scripts for GPUs (`t5x.contrib.gpu.scripts_gpu.seqio_tasks`).

Those register `the_pile_span_corruption` and `glue_NAME_v2` with preprocessors of the t5 package,
which this one does without. Importing this module says what to do instead.
"""

from absl import logging

logging.warning(
    "the_pile_span_corruption and the glue_*_v2 tasks are not registered: register them with "
    "seqio.TaskRegistry in a module of yours, or bind MIXTURE_OR_TASK_NAME to another task"
)
