"""Tracing models for the exporters."""

import logging

from mobilevit_hf.backends.tracing import quiet


def test_quiet_silences_the_root_logger_only_inside(monkeypatch, capfd):
    monkeypatch.setattr(logging.root, "handlers", [])  # as in an application without logging configuration
    with quiet():
        logging.warning("of an exporter")
    assert logging.root.handlers == []
    logging.getLogger("mobilevit_hf").warning("of the package")
    assert capfd.readouterr().err == "of the package\n"
