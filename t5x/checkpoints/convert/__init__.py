"""Models between Hugging Face's layout and checkpoints, in memory bounded by their largest array.

`import_model` and `export_model` move parameters an array at a time; `average` makes one checkpoint
of several. They need this distribution's own t5x.
"""

from t5x.checkpoints.convert.averaging import average
from t5x.checkpoints.convert.exporting import export_model
from t5x.checkpoints.convert.importing import import_model

__all__ = ["average", "export_model", "import_model"]
