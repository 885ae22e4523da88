"""Inference: the jitted function, files read and written, chunks that count once."""
