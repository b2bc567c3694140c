"""Taken by its owner soon."""
