"""Upstream's second name for the T5 network whose layers are scanned."""
