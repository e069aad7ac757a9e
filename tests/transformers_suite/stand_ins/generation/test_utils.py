"""Stands in for the text generation tests: the source distribution leaves out the folder."""


class GenerationTesterMixin:
    """No tests; `ModelTesterMixin` asks whether a test class inherits it."""
