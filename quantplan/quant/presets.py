"""Quantization presets as the recipes they are: the type of every tensor, and so the exact bytes."""
