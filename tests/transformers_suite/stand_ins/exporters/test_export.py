"""Stands in for the exporter tests: the source distribution leaves out the folder."""


class ExportTesterMixin:
    """No tests."""
