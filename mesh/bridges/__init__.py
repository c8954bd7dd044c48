"""Bridges: where people and devices are who do not run a node."""
