"""Training loop for every task and any number of processes."""

import dataclasses
import math
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object
from torch import Tensor

from ..data.dataloader import explain_killed_worker
from ..evaluation import EvaluationResult, evaluate_model
from ..evaluation.evaluator import RESAMPLES
from ..io import quote_words, write_text
from ..modeling.finite import NonFiniteOutputError, check_finite_weights
from ..records import RESULTS_FILE, CrossValidationRecord
from ..tasks import TASKS
from .arguments import TrainArguments
from .callbacks import TrainerCallback, TrainingProgress
from .change_processes import change_processes
from .checkpoint import History, explain_full_disk, remove_leftovers, save_checkpoint, save_model
from .cross_validation import cross_validate, mean_threshold
from .dataloader import merge_lanes
from .distributed import explain_lost_process, run_in_main_process
from .output_dir import HISTORY_FILE, RECIPE_FILE, TABLE_FILE, TEST_FILE, TRACKER_PROJECT, lock_output_dir
from .push_to_hub import publish_result
from .record import write_results, write_training_record
from .reports import first_images, write_reports
from .results_table import evaluation_values, write_results_table
from .resume import raise_if_complete
from .setup import Run, TrainingData, create_accelerator, prepare_run
from .signals import StoppedError, catch_signals
from .state import ThroughputMeter, TrainerState, TrainingResult
from .time_limit import CLOSING_SECONDS, estimate_test, reserve_seconds, skips_test

# Bootstrap resamples for the intervals in the history, which take 1% of an evaluation's time for a detector on a CPU
# (1000: 18%). Those of the saved weights are computed with `RESAMPLES`.
LOGGED_RESAMPLES = 100
# Longest time between checkpoints, whatever `save_steps` is.
SAVE_SECONDS = 600


def train(arguments: TrainArguments, callback: TrainerCallback | None = None) -> TrainingResult:
    """Train a model on a dataset and save the best weights to `arguments.output_dir`.

    Raises:
        ValueError: If an argument, the dataset or the initial checkpoint is invalid, the loss is not finite, or the
            disk is full.
        HubError: If the Hub denies write access.
        StoppedError: If SIGTERM or Ctrl-C stopped the run; resume it with `resume="auto"`.
    """
    began = time.monotonic()
    for name in ("data", "output_dir"):
        if not getattr(arguments, name):
            raise ValueError(f"{name}: got none, expected a path. Pass one.")
    accelerator = create_accelerator(arguments)
    if callback is None or not accelerator.is_main_process:
        callback = TrainerCallback()
    with ExitStack() as stack:
        stack.enter_context(explain_lost_process(accelerator))
        lock = lock_output_dir(Path(str(arguments.output_dir)))
        run_in_main_process(accelerator, lambda: stack.enter_context(lock))
        if arguments.cross_validation:
            return cross_validate(arguments, accelerator, callback, train_part, began)
        return Trainer(prepare_run(arguments, accelerator, callback), callback, began).train()


def train_part(
    arguments: TrainArguments,
    callback: TrainerCallback,
    data: TrainingData,
    *,
    max_seconds: float | None,
    cross_validation: CrossValidationRecord | None = None,
    pooled: EvaluationResult | None = None,
) -> TrainingResult:
    """Train a model of a cross-validation on a scanned dataset.

    Args:
        arguments, callback, data: Of this model.
        max_seconds: Time limit of this model.
        cross_validation, pooled: For the model to keep: metrics of the folds, and the evaluation of all of them.
    """
    began = time.monotonic()
    run = prepare_run(arguments, create_accelerator(arguments), callback, data)
    run.max_seconds, run.cross_validation, run.pooled = max_seconds, cross_validation, pooled
    if cross_validation and (threshold := mean_threshold(cross_validation)) is not None:
        run.model.config.recommended_threshold = threshold
    return Trainer(run, callback, began).train()


class Trainer:
    """Training loop of one run; its setup, from the time `began` on, counts towards `max_minutes`."""

    def __init__(self, run: Run, callback: TrainerCallback, began: float) -> None:
        self.run, self.callback, self.began = run, callback, began
        self.arguments, self.accelerator = run.arguments, run.accelerator
        self.output_dir = Path(str(run.arguments.output_dir))
        self.state, self.seconds_before = TrainerState(), 0.0
        self.progress, self.learning_rate = 0.0, 0.0
        self.history: History | None = None
        self.evaluation: EvaluationResult | None = None  # of the saved weights, if they are the last
        self.best_model: dict[str, Any] | None = None  # in the main process: weights and recommended threshold
        self.meter, self.saved, self.has_checkpoint = ThroughputMeter(), began, run.resumed is not None

    def train(self) -> TrainingResult:
        """Train to the end, evaluate, and write the reports; for errors see `train`."""
        if self.run.resumed:
            self._restore(self.run.resumed)
            self.run.resumed = None
        self._update_progress()
        self._check_remaining()
        self.callback.on_start(self.run.summary)
        if self.run.warning:
            self.callback.on_message(self.run.warning, "warning")
        if self.state.step:
            self.callback.on_message(f"Resuming from step {self.state.step}.")
        self._open_output()
        self.meter, self.saved = ThroughputMeter(), time.monotonic()
        with catch_signals() as signals, closing(self.run.loader), explain_killed_worker():
            while self.progress < 1:
                self._train_epoch(signals)
        return self._finish()

    # --- start -------------------------------------------------------------------------------------------------------

    def _restore(self, saved: dict[str, Any]) -> None:
        self.state, self.best_model = TrainerState(**saved["state"]), saved["best_model"]
        self.seconds_before = self.state.seconds
        try:
            self.run.model.load_state_dict(saved["model"])
        except RuntimeError as error:  # another number of classes is found before
            raise ValueError(
                f"model: got {self.arguments.model} with other layers than the checkpoint in {self.output_dir}, "
                "expected those it was trained with. Restore it, or choose another --output-dir."
            ) from error
        self.run.optimizer.load_state_dict(saved["optimizer"])
        if self.run.ema:
            self.run.ema.load_state_dict(saved["ema"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        change_processes(self.run, self.state, saved, self.callback.on_message)
        random_state = saved["random_states"][self.accelerator.process_index % len(saved["random_states"])]
        torch.set_rng_state(random_state["cpu"])
        if "cuda" in random_state and self.accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(random_state["cuda"])

    def _check_remaining(self) -> None:
        """Check that there is a step to train, or a run to finish that ended before its results were written."""
        if self.progress < 1:
            return
        if not self.state.step:
            raise ValueError(
                f"max_minutes: got {self.arguments.max_minutes}, which ended before the first step: scanning the data "
                f"and loading the model took {self.state.seconds:.0f} s, and {CLOSING_SECONDS:.0f} s are reserved for "
                "the end. Increase it."
            )
        run_in_main_process(self.accelerator, lambda: raise_if_complete(self.output_dir, self.state.step))

    def _open_output(self) -> None:
        if self.accelerator.is_main_process:
            remove_leftovers(self.output_dir, self.state.step, self.arguments.save_total_limit)
            self._write_best_model()
            with explain_full_disk(self.output_dir):
                self.history = History(self.output_dir / HISTORY_FILE, self.state.step)
                write_text(self.output_dir / RECIPE_FILE, self.arguments.to_yaml())
            for name in (RESULTS_FILE, TEST_FILE):  # of a run that is extended
                (self.output_dir / name).unlink(missing_ok=True)
        if self.arguments.report_to != "none":
            config = {name: value for name, value in dataclasses.asdict(self.arguments).items() if value is not None}
            self.accelerator.init_trackers(TRACKER_PROJECT, config)

    # --- loop --------------------------------------------------------------------------------------------------------

    def _train_epoch(self, signals: list[int]) -> None:
        state = self.state
        self._set_train_mode()
        with closing(self.run.loader.epoch(state)) as batches:
            for name_samples, batch in self.meter.watch(batches):
                losses = self._train_batch(batch)
                state.batch += 1
                self.meter.add(losses, len(batch["pixel_values"]), partial(self._fail, state.step + 1, name_samples))
                if not self.accelerator.sync_gradients:
                    continue
                state.step += 1
                if self.run.ema:
                    self.run.ema.update()
                stopped = self._update_progress(stop=bool(signals))
                self._after_step(stopped, signals)
                if self.progress >= 1:
                    return
        state.epoch, state.batch, state.epoch_progress = state.epoch + 1, 0, self.progress
        state.start, state.order_processes = 0, 0

    def _train_batch(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Run forward and backward pass, and the optimizer step after the last accumulated batch."""
        loss_model, arguments = self.run.loss_model, self.arguments
        with self.accelerator.accumulate(loss_model):
            losses = loss_model(batch)
            self.accelerator.backward(losses["loss"])
            if self.accelerator.sync_gradients:
                self._average_gradients()
                if arguments.max_grad_norm:
                    self.accelerator.clip_grad_norm_(loss_model.parameters(), arguments.max_grad_norm)
            self.learning_rate = self.run.schedule(self.state.step, self.progress)
            for group in self.run.optimizer.param_groups:
                group["lr"] = self.learning_rate
            self.run.optimizer.step()
            self.run.optimizer.zero_grad()
        return {name: loss.detach() for name, loss in losses.items()}

    def _average_gradients(self) -> None:
        """Average the gradients of all processes, which start with equal weights.

        DDP does so while the backward pass runs, but regroups the gradients after the first step of a process. With
        three and more processes, this changes the order of the sums: a resumed run would differ in the last bits.
        """
        if self.accelerator.num_processes == 1:
            return
        gradients = [p.grad for p in self.run.model.parameters() if p.grad is not None]
        averages = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        for gradient, average in zip(gradients, averages.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(average.view_as(gradient))

    def _after_step(self, stopped: bool, signals: list[int]) -> None:
        """Log, evaluate and save if due; raise if a signal stopped the run."""
        arguments, state = self.arguments, self.state
        evaluations = self._count_due(arguments.eval_steps)
        evaluates = evaluations > state.evaluations or self.progress >= 1
        if state.step % arguments.logging_steps == 0 or evaluates:
            self._log()
        self.callback.on_progress(self._current_progress())
        if evaluates:
            state.evaluations = evaluations
            self._evaluate()
            if self._stops_early():
                self.callback.on_message(f"Stopped early: no improvement in {state.misses} evaluations.")
                self.progress = 1.0
        saves, is_best = self._count_due(arguments.save_steps), state.best_step == state.step
        is_first = is_best and not self.has_checkpoint  # a model without a checkpoint is not of this run
        if saves > state.saves or stopped or self._is_save_overdue() or self.progress >= 1 or is_first:
            state.saves = saves
            self._save()
        if is_best:
            self._write_best_model()
        if stopped:
            raise StoppedError(
                f"Stopped at step {state.step}, {self.progress:.0%} of the training. The checkpoint is saved; resume "
                f"with --resume auto --output-dir {quote_words(self.output_dir)}",
                signals[0] if signals else signal.SIGTERM,
            )

    def _count_due(self, steps: float) -> int:
        """Return how often an event is due by now, every `steps` steps or (below 1) fraction of the training."""
        return int(self.progress / steps + 1e-9) if steps < 1 else int(self.state.step // steps)

    def _is_save_overdue(self) -> bool:
        overdue = time.monotonic() - self.saved > SAVE_SECONDS
        if self.accelerator.num_processes == 1:
            return overdue
        return bool(broadcast(torch.tensor(int(overdue), device=self.accelerator.device)).item())

    def _stops_early(self) -> bool:
        patience = self.arguments.early_stopping_patience
        return patience is not None and self.state.misses >= patience

    def _update_progress(self, *, stop: bool = False) -> bool:
        """Update the completed fraction, the same in all processes; return whether one of them has to stop."""
        state, num_steps = self.state, self.run.num_steps
        state.seconds = self.seconds_before + time.monotonic() - self.began
        fractions = [0.0]
        if num_steps:
            fractions.append((state.step + state.step_offset) / num_steps)
        if self.run.max_seconds is not None:
            reserve = reserve_seconds(state.evaluation_seconds, self._test_seconds(), self.run.max_seconds)
            fractions.append(state.seconds / max(self.run.max_seconds - reserve, 1e-3))
        if self._stops_early():
            fractions.append(1.0)  # resumed after early stopping
        self.progress = min(1.0, max(fractions))
        if self.accelerator.num_processes == 1:
            return stop
        values = [self.progress if self.accelerator.is_main_process else 0.0, float(stop)]
        self.progress, stops = self.accelerator.reduce(
            torch.tensor(values, device=self.accelerator.device), "sum"
        ).tolist()
        return stops > 0

    def _test_seconds(self) -> float:
        splits, meter = self.run.task.dataset.splits, self.meter
        return estimate_test(splits, self.state.evaluation_seconds, meter.images_per_second)

    def _set_train_mode(self) -> None:
        self.run.model.train()
        if self.run.frozen is not None:  # keeps its batch-norm statistics
            self.run.frozen.eval()

    def _fail(self, step: int, name_samples: Callable[[], list[str]]) -> None:
        """Raise the error for a loss that is not finite."""
        names = ", ".join(name_samples())
        raise self._divergence(f"The loss is not finite at step {step}, on these images: {names}.")

    def _divergence(self, fact: str) -> ValueError:
        best = f" and the best weights, of step {self.state.best_step}," if self.state.best_step else ""
        kept = f"Earlier checkpoints{best} are intact." if self.has_checkpoint else "There is no checkpoint yet."
        return ValueError(
            f"{fact} {kept} Try a lower --learning-rate, a longer warm-up (--warmup-steps) or a lower "
            "--max-grad-norm; without --fp16, if it was set."
        )

    def _check_weights(self) -> None:
        """Raise an error if the model's current weights are not finite."""
        try:
            check_finite_weights(self.run.model, "model")
        except ValueError as error:
            fact = str(error).removeprefix("model: got ").partition(",")[0]
            raise self._divergence(f"The weights are not finite after step {self.state.step}: {fact}.") from error

    # --- logging, evaluation and checkpoints -------------------------------------------------------------------------

    def _current_progress(self) -> TrainingProgress:
        state = self.state
        return TrainingProgress(
            progress=self.progress,
            step=state.step,
            epoch=round(self.run.loader.completed_epochs(state), 3),
            loss=self.meter.mean_loss,
            learning_rate=self.learning_rate,
            images_per_second=self.meter.images_per_second * self.accelerator.num_processes,
            seconds_left=state.seconds * (1 - self.progress) / max(self.progress, 1e-6),
        )

    def _log(self) -> None:
        self.meter.close()
        line = dataclasses.asdict(self._current_progress()) | {"seconds": round(self.state.seconds, 1)}
        line |= self.meter.losses | {"waiting_for_data": round(self.meter.waiting, 3)}
        del line["seconds_left"], line["part"]
        self._add_line(line)

    def _add_line(self, line: dict[str, Any]) -> None:
        if self.history:
            self.history.add({"step": self.state.step, **line})
            self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=self.state.step)

    def _evaluate(self) -> None:
        """Evaluate the averaged weights on the validation split, and save them if they are the best so far."""
        self.meter.close()
        state, started = self.state, time.monotonic()
        with self.run.ema.swap() if self.run.ema else nullcontext():
            self._synchronize_buffers()
            self._check_weights()
            result = self._evaluate_split("validation", RESAMPLES if self.progress >= 1 else LOGGED_RESAMPLES)
            value = result.metrics.get(self.arguments.metric_for_best_model, -1.0) if result else None
            if value is not None and not math.isfinite(value):
                raise self._divergence(f"{self.arguments.metric_for_best_model} is {value} at step {state.step}.")
            # The models of a cross-validation keep the last weights. Of equal values, the latest is the best.
            is_last = value is None or bool(self.arguments.cross_validation)
            if is_last or state.best is None or value >= state.best:
                state.best, state.best_step, state.misses = value, state.step, 0
                self._keep_best(result)
            else:
                state.misses += 1
        self._set_train_mode()
        state.evaluation_seconds = time.monotonic() - started
        self.meter.skip()
        if result and self.history:
            self._add_line({"epoch": self._current_progress().epoch, **evaluation_values(result)})
            shown = [name for name in TASKS[self.run.task.dataset.task].metrics if name in result.metrics]
            values = result.losses | {name: result.metrics[name] for name in shown}
            text = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
            self.callback.on_message(f"step {state.step}: {text}", "validation")
        if self.history:
            with explain_full_disk(self.output_dir):
                write_results_table(self.output_dir / TABLE_FILE, self.history.lines)

    def _evaluate_split(self, split: str, resamples: int) -> EvaluationResult | None:
        """Evaluate the model's current weights on a split, None if the dataset has no such split."""
        samples = self.run.task.dataset.splits.get(split)
        if samples is None:
            return None
        try:
            return evaluate_model(
                self.run.model,
                self.run.processor,
                samples,
                self.run.task.dataset.classes,
                batch_size=self.arguments.per_device_eval_batch_size,
                max_bad=self.arguments.max_bad,
                resamples=resamples,
                select_threshold=split == "validation",
                rank=self.accelerator.process_index,
                num_replicas=self.accelerator.num_processes,
                gather=gather_object if self.accelerator.num_processes > 1 else None,
            )
        except ValueError as error:
            if not isinstance(error.__cause__, NonFiniteOutputError):
                raise
            fact = str(error).partition(", expected")[0]
            raise self._divergence(f"The evaluation after step {self.state.step} is not finite: {fact}.") from error

    def _test(self) -> EvaluationResult | None:
        """Evaluate the saved weights on the test split; an error is a warning, as the training is complete."""
        if skips_test(self._test_seconds(), self.run.max_seconds):
            self.callback.on_message(
                f"The test split is not measured: it would take about {self._test_seconds():.0f} s of the time limit. "
                f"Run mobilevit evaluate {quote_words(self.output_dir, self.arguments.data)} --split test",
                "warning",
            )
            return None
        try:
            return self._evaluate_split("test", RESAMPLES)
        except ValueError as error:
            self.callback.on_message(f"The test split is not measured: {error}", "warning")
            return None

    def _synchronize_buffers(self) -> None:
        """Copy the main process's batch-norm statistics to all processes, each of which saw other images."""
        if self.accelerator.num_processes > 1:
            for buffer in self.run.model.buffers():
                buffer.copy_(broadcast(buffer))

    def _keep_best(self, result: EvaluationResult | None) -> None:
        """Keep the model's current weights as the result of the run."""
        self.evaluation, model = result if self.progress >= 1 else None, self.run.model
        if result:
            self.run.task.update_config(model, result)
        if self.accelerator.is_main_process:
            weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            threshold = getattr(model.config, "recommended_threshold", None)
            self.best_model = {"weights": weights, "recommended_threshold": threshold}

    def _write_best_model(self) -> None:
        """Write the best model so far, if there is one, from the main process."""
        if self.best_model and self.accelerator.is_main_process:
            if (threshold := self.best_model["recommended_threshold"]) is not None:
                self.run.model.config.recommended_threshold = threshold
            save_model(self.output_dir, self.run.model, self.run.processor, self.best_model["weights"])

    def _save(self) -> None:
        """Save a checkpoint, from which a resumed run continues with bit-equal results."""
        self.meter.close()
        self._check_weights()
        random_state = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            random_state["cuda"] = torch.cuda.get_rng_state()
        random_states = gather_object([random_state])
        self.state.position = self.run.loader.position(self.state)
        self.state.lanes = merge_lanes(gather_object([self.run.loader.positions]))
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            content = {
                "state": dataclasses.asdict(self.state),
                "progress": self.progress,
                "arguments": dataclasses.asdict(self.arguments),
                "data": self.run.data,
                "model": self.run.model.state_dict(),
                "best_model": self.best_model,
                "optimizer": self.run.optimizer.state_dict(),
                "ema": self.run.ema.state_dict() if self.run.ema else None,
                "scaler": scaler.state_dict() if scaler else None,
                "random_states": random_states,
            }
            save_checkpoint(self.output_dir, self.state.step, content, self.arguments.save_total_limit)
        self.saved, self.has_checkpoint = time.monotonic(), True
        self.meter.skip()

    # --- end ---------------------------------------------------------------------------------------------------------

    def _finish(self) -> TrainingResult:
        """Evaluate the saved weights with confidence intervals, write record and reports, and publish."""
        dataset = self.run.task.dataset
        load = type(self.run.model).from_pretrained
        self.run.model.load_state_dict(
            run_in_main_process(self.accelerator, lambda: load(self.output_dir).state_dict())
        )
        if self.evaluation is None:  # the saved weights are not the last
            self.evaluation = self._evaluate_split("validation", RESAMPLES)
        metric, folds = self.arguments.metric_for_best_model, self.run.cross_validation
        result = TrainingResult(
            output_dir=self.output_dir,
            metric=metric,
            best=statistics.fmean(folds.metrics[metric]) if folds else self.state.best,
            steps=self.state.step,
            seconds=self.seconds_before + time.monotonic() - self.began,
            cross_validation=folds,
            pooled=self.run.pooled,
            evaluation=self.evaluation,
            test=self._test(),
            history=self.history.lines if self.history else [],
        )
        if self.run.record:
            samples = dataset.splits.get("train" if folds else "validation")  # the folds are the training split
            with explain_full_disk(self.output_dir):
                write_training_record(self.run.record, result, self.accelerator)
                write_reports(
                    result,
                    samples if isinstance(samples, Sequence) else None,
                    dataset.classes,
                    record=self.run.record,
                    best_step=self.state.best_step,
                    train_batches=first_images(self.run),
                )
                write_results(result, self.run.record.data.name)
        self.accelerator.end_training()
        if self.run.repo_id:
            publish_result(self.arguments, self.run.repo_id, self.callback.on_message)
        return result
