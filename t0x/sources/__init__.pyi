from .files import (
    CsvRows as CsvRows,
)
from .files import (
    JoinedRows as JoinedRows,
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
    open_file as open_file,
)
from .files import (
    open_files as open_files,
)
from .files import (
    select as select,
)
from .folders import (
    EXTENSIONS as EXTENSIONS,
)
from .folders import (
    find_splits as find_splits,
)
from .json_rows import (
    JsonRows as JsonRows,
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
    local_splits as local_splits,
)
from .openers import (
    open_rows as open_rows,
)
from .openers import (
    underscore_fields as underscore_fields,
)
from .parquet_rows import (
    ParquetRows as ParquetRows,
)
from .values import (
    as_plain as as_plain,
)
