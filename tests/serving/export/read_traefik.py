"""Traefik's files: it starts no engine, its marks are comments of the routes."""

from __future__ import annotations

from serving.export.facts import Facts, commented

from quantplan.serving.export.exported import File


def read(files: tuple[File, ...]) -> Facts:
    return Facts(marks=commented(files[0].text))
