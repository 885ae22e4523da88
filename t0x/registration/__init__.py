"""Registers (dataset, prompt) pairs as SeqIO tasks and mixes them at T0's rates."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
