"""Stand-in for the text generation tests, which the source distribution does not contain."""


class GenerationTesterMixin:
    """No tests; `ModelTesterMixin` checks for this base class."""
