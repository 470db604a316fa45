"""quantplan: the answer before the download, the proof before the serving."""

__version__ = "0.1.0"
