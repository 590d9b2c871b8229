"""Predictions as pre-annotations for annotation tools, one file a format, each with a reader of the same name."""
