from .format import (
    CUT_OFF as CUT_OFF,
)
from .format import (
    FOLDER as FOLDER,
)
from .format import (
    NO_STEP as NO_STEP,
)
from .writing import (
    ResultsLogger as ResultsLogger,
)
