from .directories import (
    all_dataset_checkpoint_steps as all_dataset_checkpoint_steps,
)
from .directories import (
    all_steps as all_steps,
)
from .directories import (
    find_checkpoint as find_checkpoint,
)
from .directories import (
    get_checkpoint_dir as get_checkpoint_dir,
)
from .directories import (
    get_checkpoint_prefix as get_checkpoint_prefix,
)
from .directories import (
    get_step_from_checkpoint_dir as get_step_from_checkpoint_dir,
)
from .directories import (
    latest_step as latest_step,
)
from .manager import (
    Checkpointer as Checkpointer,
)
from .manager import (
    OrbaxCheckpointManagerInterface as OrbaxCheckpointManagerInterface,
)
from .manager import (
    ParameterInfo as ParameterInfo,
)
from .manager import (
    PyTree as PyTree,
)
from .manager import (
    RestoreStateTransformationFn as RestoreStateTransformationFn,
)
from .manager import (
    SaveBestCheckpointer as SaveBestCheckpointer,
)
from .manager import (
    SaveStateTransformationFn as SaveStateTransformationFn,
)
from .manager import (
    get_local_data as get_local_data,
)
from .retention import (
    populate_metrics_for_steps as populate_metrics_for_steps,
)
