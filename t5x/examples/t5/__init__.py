"""The T5 family: layers, network and its gin files."""
