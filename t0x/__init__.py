"""t0x: prompts to tasks to mixtures, rank classification and reports for T0-style models."""

from pathlib import Path

__version__ = "0.1.0"


def gin_directory() -> str:
    """Directory of the run configurations (t0pp.gin and its kin), in a wheel or in a checkout."""
    package = Path(__file__).parent
    installed = package / "gin"
    return str(installed if installed.is_dir() else package.parent / "gin")
