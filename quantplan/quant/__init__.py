"""Quantization presets as recipes, and what they cost in quality."""
