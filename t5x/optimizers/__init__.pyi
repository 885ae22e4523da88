from .base import (
    MultiOptimizer as MultiOptimizer,
)
from .base import (
    OptaxStatePartitionRules as OptaxStatePartitionRules,
)
from .base import (
    OptaxWrapper as OptaxWrapper,
)
from .base import (
    Optimizer as Optimizer,
)
from .base import (
    OptimizerDef as OptimizerDef,
)
from .base import (
    OptimizerDefType as OptimizerDefType,
)
from .base import (
    OptimizerState as OptimizerState,
)
from .base import (
    OptimizerStateType as OptimizerStateType,
)
from .base import (
    OptimizerType as OptimizerType,
)
from .base import (
    adabelief as adabelief,
)
from .base import (
    adagrad as adagrad,
)
from .base import (
    adam as adam,
)
from .base import (
    adamw as adamw,
)
from .base import (
    chain as chain,
)
from .base import (
    dpsgd as dpsgd,
)
from .base import (
    fromage as fromage,
)
from .base import (
    lamb as lamb,
)
from .base import (
    lars as lars,
)
from .base import (
    lion as lion,
)
from .base import (
    noisy_sgd as noisy_sgd,
)
from .base import (
    radam as radam,
)
from .base import (
    rmsprop as rmsprop,
)
from .base import (
    sgd as sgd,
)
from .base import (
    wrap_optax_optimizer as wrap_optax_optimizer,
)
from .base import (
    yogi as yogi,
)
