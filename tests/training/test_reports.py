"""Results file and figures of a finished training run."""

from mobilevit_hf.training.reports import write_reports
from mobilevit_hf.training.state import TrainingResult
from mobilevit_hf.visualization import plots


def test_curves_show_the_metric(monkeypatch, tmp_path):
    figures = {}
    monkeypatch.setattr(plots, "save_plot", lambda figure, path: figures.setdefault(path.name, figure))
    history = [{"step": 1, "loss": 0.5, "learning_rate": 0.1}, {"step": 1, "eval_accuracy": 0.5}]
    write_reports(TrainingResult(tmp_path, "accuracy", 0.5, 1, 1.0, None, history), None, ["circle", "square"])
    labels = [axes.get_ylabel() for axes in figures["curves.png"].axes]
    assert labels == ["training loss", "accuracy", "learning rate"]
