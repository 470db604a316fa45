"""Weights that are read from the hub and never lie on the disk: proved once as a whole, then again tensor by tensor."""
