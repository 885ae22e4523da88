"""What is trained and evaluated: the catalogue, task modules and prompts of our own."""
