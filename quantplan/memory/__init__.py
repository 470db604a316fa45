"""Bytes by device: weights, context, compute. Pure functions."""
