"""quantplan: the answer before the download, the proof before the serving."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`quantplan.estimate(model, …)` and `quantplan.results(model=None)`, imported when they are used."""
    if name == "estimate":
        from quantplan.rehearsal.ask import estimate

        return estimate
    if name == "results":
        from quantplan.artifact.history import results

        return results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
