from .command import (
    prepare as prepare,
)
from .command import (
    run_locally as run_locally,
)
from .request import (
    Request as Request,
)
from .request import (
    Run as Run,
)
