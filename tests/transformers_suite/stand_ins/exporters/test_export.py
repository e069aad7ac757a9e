"""Stand-in for the exporter tests, which the source distribution does not contain."""


class ExportTesterMixin:
    """No tests."""
