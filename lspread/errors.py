"""Exceptions of lspread: one root, and one kind for each thing that can be wrong."""

__all__ = ["ConfigError", "DataError", "GraphError", "LspreadError", "SolveError"]


class LspreadError(Exception):
    """Root of every error that lspread raises on purpose."""


class GraphError(LspreadError, ValueError):
    """A graph, its neighbours or the tensors beside it do not fit what a function needs."""


class ConfigError(LspreadError, ValueError):
    """An option has a value that it cannot have."""


class DataError(LspreadError, ValueError):
    """A file, a folder, an image or a table of labels cannot be used as it is."""


class SolveError(LspreadError, RuntimeError):
    """A linear solve did not reach the accuracy that was asked for."""
