"""Formats of checkpoints, one module each; `stores` tells them apart and opens them."""
