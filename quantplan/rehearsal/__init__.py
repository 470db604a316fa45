"""Asking the engine itself, through a model without weights."""
