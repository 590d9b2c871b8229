"""Frozen features: what `encode` makes of rows, computed once."""
