"""How a run reaches its machines."""
