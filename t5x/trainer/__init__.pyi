from .actions import (
    ActionMapType as ActionMapType,
)
from .actions import (
    ActionMode as ActionMode,
)
from .actions import (
    BaseAction as BaseAction,
)
from .actions import (
    EarlyStoppingAction as EarlyStoppingAction,
)
from .actions import (
    TerminateOnNanAction as TerminateOnNanAction,
)
from .loop import (
    BaseTrainer as BaseTrainer,
)
from .loop import (
    Trainer as Trainer,
)
from .step import (
    Batch as Batch,
)
from .step import (
    LearningRateFunction as LearningRateFunction,
)
from .step import (
    Metrics as Metrics,
)
from .step import (
    WeightMetricsComputer as WeightMetricsComputer,
)
from .step import (
    accumulate_grads_microbatched as accumulate_grads_microbatched,
)
from .step import (
    apply_grads as apply_grads,
)
from .step import (
    eval_step as eval_step,
)
from .step import (
    merge_metrics as merge_metrics,
)
from .step import (
    train_with_lr as train_with_lr,
)
from .summaries import (
    MetricsManager as MetricsManager,
)
