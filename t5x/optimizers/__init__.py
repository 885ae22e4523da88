"""Optimizers with logical axes, around optax's (upstream `t5x.optimizers`)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
