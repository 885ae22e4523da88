"""Gin files; a package, because gin finds included files as package resources."""
