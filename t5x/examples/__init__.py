"""Network definitions, one folder a model family."""
