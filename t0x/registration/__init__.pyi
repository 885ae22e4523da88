from .dataset import (
    Dataset as Dataset,
)
from .dataset import (
    TaskInfo as TaskInfo,
)
from .dataset import (
    mixing_rate as mixing_rate,
)
from .register import (
    add_prompts as add_prompts,
)
from .register import (
    register_dataset as register_dataset,
)
from .register import (
    register_mixture as register_mixture,
)
from .register import (
    register_prompt as register_prompt,
)
from .registry import (
    SCORE_EVAL as SCORE_EVAL,
)
from .registry import (
    DatasetTasks as DatasetTasks,
)
from .registry import (
    task_info as task_info,
)
from .registry import (
    task_infos as task_infos,
)
from .registry import (
    task_name as task_name,
)
from .skipped import (
    skipped_rows as skipped_rows,
)
from .tasks import (
    PromptedMixture as PromptedMixture,
)
from .tasks import (
    PromptedTask as PromptedTask,
)
from .tasks import (
    tokenize as tokenize,
)
