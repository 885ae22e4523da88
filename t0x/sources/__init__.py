"""Rows of datasets from local files, TFDS and the hub, in one schema."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
