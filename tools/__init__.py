"""Command lines: python -m tools.NAME."""
