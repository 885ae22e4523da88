from .files import (
    NAMED_BAD_LINES as NAMED_BAD_LINES,
)
from .files import (
    SUFFIXES as SUFFIXES,
)
from .files import (
    CsvRows as CsvRows,
)
from .files import (
    JsonLines as JsonLines,
)
from .files import (
    ParquetRows as ParquetRows,
)
from .files import (
    Row as Row,
)
from .files import (
    Rows as Rows,
)
from .files import (
    TfdsRows as TfdsRows,
)
from .files import (
    folder_splits as folder_splits,
)
from .files import (
    open_file as open_file,
)
from .openers import (
    DATA_DIR_VARIABLE as DATA_DIR_VARIABLE,
)
from .openers import (
    HUB_FIELDS as HUB_FIELDS,
)
from .openers import (
    OPENERS as OPENERS,
)
from .openers import (
    Request as Request,
)
from .openers import (
    Settings as Settings,
)
from .openers import (
    local_folder as local_folder,
)
from .openers import (
    local_splits as local_splits,
)
from .openers import (
    open_rows as open_rows,
)
from .openers import (
    underscore_fields as underscore_fields,
)
