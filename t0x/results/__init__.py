"""What evaluation leaves behind: its format, writing, reading and selecting by it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
