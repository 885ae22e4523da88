"""Checkpoints: saving, restoring and reading them (upstream `t5x.checkpoints`)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
