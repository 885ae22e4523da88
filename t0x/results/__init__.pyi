from .writing import (
    CUT_OFF as CUT_OFF,
)
from .writing import (
    FOLDER as FOLDER,
)
from .writing import (
    NO_STEP as NO_STEP,
)
from .writing import (
    ResultsLogger as ResultsLogger,
)
