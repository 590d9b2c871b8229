"""Adapters, what trains in them, and the base that they belong to."""
