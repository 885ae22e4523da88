"""What surrounds a run: terminal, log, errors in settings, being told to stop."""
