"""Folklore and contradictions in the files that people deploy: units, compose files, manifests, scripts, clients."""
