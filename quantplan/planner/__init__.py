"""From facts to a plan. Pure functions."""
