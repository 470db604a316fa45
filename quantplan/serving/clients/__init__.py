"""Typed clients for a planned server, in Python and TypeScript: sources with one place for a plan's limits."""
