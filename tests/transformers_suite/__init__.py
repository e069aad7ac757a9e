"""The test mixins of the installed transformers version, run against the classes of this package."""
