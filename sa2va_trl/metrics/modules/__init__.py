"""Metrics for `evaluate.load`, by the path of their file."""
