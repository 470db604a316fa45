"""Convert, quantize, evaluate, gate: steps that turn files into one file."""
