"""The train step and the loop around it (upstream `t5x.trainer`)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
