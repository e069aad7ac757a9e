"""The loop that trains, for any task and any number of processes."""

import dataclasses
import math
import signal
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast, gather_object, set_seed
from torch import Tensor, nn

from ..evaluation import EvaluationResult, evaluate_model
from ..evaluation.evaluator import RESAMPLES
from ..io import write_text
from ..modeling.configuration_mobilevit import VARIANTS
from ..tasks import TaskName
from .arguments import METRICS, TrainArguments
from .checkpoint import (
    History,
    explain_full_disk,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_model,
    tidy,
)
from .data import TrainingInputs, read_data
from .ema import EMA
from .initialization import choose_start
from .optimization import Schedule, make_optimizer
from .push_to_hub import find_repository, publish_result
from .record import RunRecord
from .reports import RESULTS_FILE, write_reports
from .signals import StoppedError, catch_signals
from .state import Listener, State, Status, TrainingResult, Window
from .tasks import TASKS, LossFunction

ARGUMENTS_FILE, METRICS_FILE = "recipe.yaml", "metrics.jsonl"

# A checkpoint is written when `save_steps` says so, and at the latest after so long.
SAVE_SECONDS = 600
# How long a default training is: so many times through the data, and so many steps at least; longer with new weights.
LENGTH: dict[TaskName, tuple[int, int]] = {"image-classification": (12, 300), "object-detection": (30, 1000)}
NEW_WEIGHTS_FACTOR = 3
# The time set aside at the end of a training with `max_minutes`: evaluations take so many times the last one (there is
# one more if the weights that are kept are not the last), and so many seconds are for what is drawn and written.
EVALUATION_RESERVE, CLOSING_SECONDS = 2.25, 6.0
# What may change when a training goes on: what it computes depends on nothing of this.
MAY_CHANGE = (
    "resume", "output_dir", "num_train_epochs", "max_steps", "max_minutes", "early_stopping_patience", "save_steps",
    "save_total_limit", "logging_steps", "report_to", "push_to_hub", "hub_model_id", "hub_private_repo",
    "hub_revision", "hub_images", "license", "license_name", "license_link",
    "dataloader_num_workers", "per_device_eval_batch_size", "compile", "max_bad",
)  # fmt: skip


def train(arguments: TrainArguments, listener: Listener | None = None) -> TrainingResult:
    """Train a model on a dataset and leave the best weights in `arguments.output_dir`.

    Raises:
        ValueError: If an argument, the data or the model to start with can't be used; if the loss is not a number;
            if the disk is full.
        StoppedError: If SIGTERM or Ctrl-C ended it; it goes on with `resume="auto"`.
    """
    return Engine(arguments, listener or Listener()).run()


class LossModel(nn.Module):
    """A model and its loss, a batch → a scalar: what Accelerate wraps, so that the model itself stays as it is."""

    def __init__(self, model: nn.Module, loss_function: LossFunction) -> None:
        super().__init__()
        self.model, self.loss_function = model, loss_function

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """The loss of a batch."""
        return self.loss_function(self.model, batch)


class Engine:
    """One training, from the arguments to the saved model."""

    def __init__(self, arguments: TrainArguments, listener: Listener) -> None:
        self.began = time.monotonic()
        for name in ("data", "output_dir"):
            if not getattr(arguments, name):
                raise ValueError(f"{name}: got none, expected a folder. Say which.")
        self.accelerator = make_accelerator(arguments)
        self.listener = listener if self.accelerator.is_main_process else Listener()
        dataset, report = read_data(arguments, self.accelerator)
        name, notes = (arguments.model, []) if arguments.model else choose_start()
        asked = dataclasses.replace(arguments, model=name)
        self.arguments = arguments = asked.for_task(dataset.task)
        for note in report.notes:
            self.listener.say(note)
        for problem in report.problems:
            self.listener.say(f"{problem.name}: {problem.reason}", problem.kind)
        publishes = arguments.push_to_hub and self.accelerator.is_main_process
        self.repo_id = find_repository(arguments, self.listener.say) if publishes else None
        self.output_dir = Path(arguments.output_dir)
        checkpoint = self._find_checkpoint()

        set_seed(arguments.seed)
        self.dataset, self.task = dataset, TASKS[dataset.task](arguments, dataset)
        start = self.task.start(report)
        self.processor = start.processor
        for note in (*notes, *start.notes):
            self.listener.say(note)
        self.inputs = TrainingInputs(arguments, self.task, start, self.accelerator)
        self._prepare_model(start.model, self.task.loss_function(report, self.accelerator.device))
        self.schedule = Schedule(
            arguments.learning_rate, arguments.min_lr_rate, arguments.warmup_steps, arguments.warmup_lr_rate
        )
        self.state, self.num_steps = State(), self._count_steps()
        if checkpoint:
            self._load(checkpoint)
        self.seconds_before = self.state.seconds
        self.progress = self._measure_progress(stop=False)[0]
        if self.progress >= 1 and not self.state.step:
            raise ValueError(
                f"max_minutes: got {arguments.max_minutes}, which were over before the first step: it took "
                f"{self.state.seconds:.0f} s to look at the data and load the model, and {CLOSING_SECONDS:.0f} s are "
                "for the end. Give more."
            )
        self.history = None
        if self.accelerator.is_main_process:
            self.run_record = RunRecord(asked, arguments, report, start.image_size)
            self.output_dir.mkdir(parents=True, exist_ok=True)  # not before all is known to be right
            tidy(self.output_dir, arguments.save_total_limit)
            with explain_full_disk(self.output_dir):
                self.history = History(self.output_dir / METRICS_FILE, self.state.step)
                write_text(self.output_dir / ARGUMENTS_FILE, arguments.to_yaml())
        if arguments.report_to != "none":
            config = {name: value for name, value in dataclasses.asdict(arguments).items() if value is not None}
            self.accelerator.init_trackers("mobilevit_hf", config)
        self.evaluation: EvaluationResult | None = None
        self._window = Window()

    # --- setting up --------------------------------------------------------------------------------------------------

    def _find_checkpoint(self) -> Path | None:
        """The checkpoint to go on from, None to begin."""
        folder, found = self.output_dir, find_checkpoints(self.output_dir)
        if self.arguments.resume is None and folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"{folder} is not empty. Go on with the training in it (--resume auto), or choose another "
                "--output-dir."
            )
        self.accelerator.wait_for_everyone()
        return found[-1] if found else None

    def _prepare_model(self, model: nn.Module, loss_function: LossFunction) -> None:
        arguments = self.arguments
        if arguments.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self._frozen = None
        if arguments.freeze_backbone:
            self._frozen = model.backbone if hasattr(model, "backbone") else model.mobilevit
            self._frozen.requires_grad_(False)
        self.raw_model = model.to(self.accelerator.device, memory_format=torch.channels_last)
        optimizer = make_optimizer(
            self.raw_model,
            learning_rate=arguments.learning_rate,
            weight_decay=arguments.weight_decay,
            betas=(arguments.adam_beta1, arguments.adam_beta2),
            decay_norms_and_biases=arguments.decay_norms_and_biases,
        )
        compiled = torch.compile(self.raw_model) if arguments.compile else self.raw_model
        self.loss_model, self.optimizer = self.accelerator.prepare(LossModel(compiled, loss_function), optimizer)
        decay = arguments.ema_decay
        self.ema = EMA(self.raw_model, decay, warmup=arguments.ema_warmup) if decay else None

    def _count_steps(self) -> int | None:
        """How many steps to train; None if time alone decides."""
        arguments, per_epoch = self.arguments, self.inputs.steps_per_epoch
        if arguments.max_steps:
            return arguments.max_steps
        if per_epoch is None:
            return None
        if arguments.num_train_epochs:
            return max(1, math.ceil(arguments.num_train_epochs * per_epoch))
        if arguments.max_minutes:
            return None
        epochs, least_steps = LENGTH[self.dataset.task]
        factor = NEW_WEIGHTS_FACTOR if arguments.model in VARIANTS else 1
        return factor * max(epochs * per_epoch, least_steps)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> TrainingResult:
        """Train to the end."""
        results = self.output_dir / RESULTS_FILE
        if self.progress >= 1 and results.exists():  # else it was ended before they were written
            raise ValueError(
                f"{self.output_dir}: this training is at its end ({self.state.step} steps). Give it more "
                "(--num-train-epochs, --max-steps, --max-minutes, --early-stopping-patience), or choose another "
                "--output-dir."
            )
        if self.accelerator.is_main_process:
            results.unlink(missing_ok=True)
        with catch_signals() as signals, closing(self.inputs):
            while self.progress < 1:
                self._run_epoch(signals)
        return self._finish()

    def _run_epoch(self, signals: list[int]) -> None:
        state = self.state
        self._set_training()
        with closing(self.inputs.epoch(state.epoch, state.batch, state.epoch_progress)) as batches:
            for draws, batch in self._window.watch(batches):
                loss = self._train_batch(batch)
                state.batch += 1
                self._window.add(loss, len(batch["pixel_values"]), partial(self._fail, state.step + 1, draws))
                if not self.accelerator.sync_gradients:
                    continue
                state.step += 1
                if self.ema:
                    self.ema.update()
                self.progress, stopped = self._measure_progress(stop=bool(signals))
                self._after_step(stopped, signals)
                if self.progress >= 1:
                    return
        state.epoch, state.batch, state.epoch_progress = state.epoch + 1, 0, self.progress

    def _train_batch(self, batch: dict[str, Any]) -> Tensor:
        """One forward and backward pass, and a step of the optimizer where enough of them are done."""
        with self.accelerator.accumulate(self.loss_model):
            loss = self.loss_model(batch)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and self.arguments.max_grad_norm:
                self.accelerator.clip_grad_norm_(self.loss_model.parameters(), self.arguments.max_grad_norm)
            self.learning_rate = self.schedule(self.state.step, self.progress)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()

    def _after_step(self, stopped: bool, signals: list[int]) -> None:
        """What is due between two steps."""
        arguments, state = self.arguments, self.state
        done = self.progress >= 1
        if state.step % arguments.logging_steps == 0 or done:
            self._log()
        self.listener.update(self._status())
        evaluations = self._times_due(arguments.eval_steps)
        if evaluations > state.evaluations or done:
            state.evaluations = evaluations
            self._evaluate()
            if arguments.early_stopping_patience and state.misses >= arguments.early_stopping_patience:
                self.listener.say(f"No better result in {state.misses} evaluations: stopped early.")
                self.progress = 1.0
        saves = self._times_due(arguments.save_steps)
        if saves > state.saves or stopped or self._overdue() or self.progress >= 1:
            state.saves = saves
            self._save()
        if stopped:
            raise StoppedError(
                f"Stopped at step {state.step}, {self.progress:.0%} of the training. All is saved; go on with "
                f"--resume auto --output-dir {self.output_dir}",
                signals[0] if signals else signal.SIGTERM,
            )

    def _times_due(self, steps: float) -> int:
        """How often something is to be done by now, by steps or (below 1) by the share of the training."""
        return int(self.progress / steps + 1e-9) if steps < 1 else int(self.state.step // steps)

    def _overdue(self) -> bool:
        overdue = time.monotonic() - self._window.saved > SAVE_SECONDS
        if self.accelerator.num_processes == 1:
            return overdue
        return bool(broadcast(torch.tensor(int(overdue), device=self.accelerator.device)).item())

    def _measure_progress(self, *, stop: bool) -> tuple[float, bool]:
        """How much of the training is done, 0..1, and whether a signal came to any process: the same in all."""
        state, arguments = self.state, self.arguments
        state.seconds = self.seconds_before + time.monotonic() - self.began
        shares = [0.0]
        if self.num_steps:
            shares.append(state.step / self.num_steps)
        if arguments.max_minutes:
            reserve = CLOSING_SECONDS + EVALUATION_RESERVE * state.evaluation_seconds
            shares.append(state.seconds / max(60 * arguments.max_minutes - reserve, 1e-3))
        if arguments.early_stopping_patience and state.misses >= arguments.early_stopping_patience:
            shares.append(1.0)  # it was stopped early, and goes on
        progress = min(1.0, max(shares))
        if self.accelerator.num_processes == 1:
            return progress, stop
        known = torch.tensor(
            [progress if self.accelerator.is_main_process else 0.0, float(stop)], device=self.accelerator.device
        )
        progress, stops = self.accelerator.reduce(known, "sum").tolist()
        return progress, stops > 0

    def _set_training(self) -> None:
        self.raw_model.train()
        if self._frozen is not None:  # its statistics too
            self._frozen.eval()

    def _fail(self, step: int, draws: list[Any]) -> None:
        """The loss is not a number."""
        names = ", ".join(self.inputs.names(draws)) or "images of a stream"
        raise ValueError(
            f"The loss is not a finite number at step {step}, on these images: {names}. What was "
            "saved before is whole. Try a lower --learning-rate, a longer warm-up (--warmup-steps) or a lower "
            "--max-grad-norm; without --fp16, if that was on."
        )

    # --- what is told, measured and kept -----------------------------------------------------------------------------

    def _status(self) -> Status:
        state = self.state
        epochs = state.epoch
        if per_epoch := self.inputs.batches_per_epoch:
            epochs += state.batch / per_epoch
        left = state.seconds * (1 - self.progress) / max(self.progress, 1e-6)
        return Status(
            progress=self.progress,
            step=state.step,
            epoch=round(epochs, 3),
            loss=self._window.mean_loss,
            learning_rate=self.learning_rate,
            images_per_second=self._window.images_per_second * self.accelerator.num_processes,
            seconds_left=left,
        )

    def _log(self) -> None:
        self._window.close()
        status = self._status()
        if self.history:
            numbers = dataclasses.asdict(status) | {"seconds": round(self.state.seconds, 1)}
            numbers["waiting_for_data"] = round(self._window.waiting, 3)
            del numbers["seconds_left"]
            self._record(numbers)

    def _record(self, line: dict[str, Any]) -> None:
        self.history.add({"step": self.state.step, **line})
        self.accelerator.log({k: v for k, v in line.items() if k != "step"}, step=self.state.step)

    def _evaluate(self) -> None:
        """Measure the averaged weights on the validation split, and keep them if they are the best so far."""
        self._window.close()
        state, started = self.state, time.monotonic()
        with self.ema.swap() if self.ema else nullcontext():
            self._share_statistics()
            result = self._measure(RESAMPLES if self.progress >= 1 else 0)
            value = result.metrics.get(self.arguments.metric_for_best_model, -1.0) if result else None
            if value is None or state.best is None or value >= state.best:  # of equal ones the later
                state.best, state.best_step, state.misses = value, state.step, 0
                self._keep(result)
            else:
                state.misses += 1
        self._set_training()
        state.evaluation_seconds = time.monotonic() - started
        self._window.skip()
        if result and self.history:
            numbers = {f"eval_{name}": value for name, value in result.metrics.items() if isinstance(value, float)}
            self._record({"epoch": self._status().epoch, **numbers})
            shown = [name for name in METRICS[self.dataset.task] if name in result.metrics]
            figures = ", ".join(f"{name} {result.metrics[name]:.3f}" for name in shown)
            self.listener.say(f"step {state.step}: {figures}", "validation")

    def _measure(self, resamples: int) -> EvaluationResult | None:
        samples = self.dataset.splits.get("validation")
        if samples is None:
            return None
        return evaluate_model(
            self.raw_model,
            self.processor,
            samples,
            self.dataset.classes,
            batch_size=self.arguments.per_device_eval_batch_size,
            max_bad=self.arguments.max_bad,
            resamples=resamples,
            rank=self.accelerator.process_index,
            num_replicas=self.accelerator.num_processes,
            gather=gather_object if self.accelerator.num_processes > 1 else None,
        )

    def _share_statistics(self) -> None:
        """Each process has seen other images: the first one's statistics of batch normalization are all's."""
        if self.accelerator.num_processes > 1:
            for buffer in self.raw_model.buffers():
                buffer.copy_(broadcast(buffer))

    def _keep(self, result: EvaluationResult | None) -> None:
        """The weights that the model has now are those in the output directory."""
        self.evaluation = result
        if result:
            self.task.finish(self.raw_model, result)
        if self.accelerator.is_main_process:
            save_model(self.output_dir, self.raw_model, self.processor)

    def _save(self) -> None:
        """A checkpoint: all that the training needs to go on as if nothing had happened."""
        self._window.close()
        randomness = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            randomness["cuda"] = torch.cuda.get_rng_state()
        randomness = gather_object([randomness])
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "state": dataclasses.asdict(self.state),
                "arguments": dataclasses.asdict(self.arguments),
                "model": self.raw_model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema.state_dict() if self.ema else None,
                "scaler": scaler.state_dict() if scaler else None,
                "randomness": randomness,
            }
            save_checkpoint(self.output_dir, self.state.step, state, self.arguments.save_total_limit)
        self._window.saved = time.monotonic()
        self._window.skip()

    def _load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: If it was written with arguments that make another training.
        """
        saved = load_checkpoint(path)
        own = dataclasses.asdict(self.arguments)
        changed = [n for n, v in saved["arguments"].items() if n in own and own[n] != v and n not in MAY_CHANGE]
        if changed:
            shown = ", ".join(f"{name} (was {saved['arguments'][name]}, is {own[name]})" for name in changed)
            raise ValueError(
                f"{path} is from a training with other arguments: {shown}. Give the same, or a new folder."
            )
        self.state = State(**saved["state"])
        self.raw_model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.ema:
            self.ema.load_state_dict(saved["ema"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        randomness = saved["randomness"][self.accelerator.process_index % len(saved["randomness"])]
        torch.set_rng_state(randomness["cpu"])
        if "cuda" in randomness and self.accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(randomness["cuda"])
        self.listener.say(f"Going on from step {self.state.step} ({path.name}).")

    def _finish(self) -> TrainingResult:
        measured = self.evaluation is not None and self.evaluation.intervals
        if "validation" in self.dataset.splits and not measured:  # the best weights are not the last
            kept = type(self.raw_model).from_pretrained(self.output_dir)
            self.raw_model.load_state_dict(kept.state_dict())
            self.evaluation = self._measure(RESAMPLES)
        result = TrainingResult(
            output_dir=self.output_dir,
            metric=self.arguments.metric_for_best_model,
            best=self.state.best,
            steps=self.state.step,
            seconds=self.seconds_before + time.monotonic() - self.began,
            evaluation=self.evaluation,
            history=self.history.lines if self.history else [],
        )
        if self.accelerator.is_main_process:
            samples = self.dataset.splits.get("validation")
            with explain_full_disk(self.output_dir):
                self.run_record.write(result, self.accelerator)
                write_reports(result, samples if isinstance(samples, Sequence) else None, self.dataset.classes)
        self.accelerator.end_training()
        if self.repo_id:
            publish_result(self.arguments, self.repo_id, self.listener.say)
        return result


def make_accelerator(arguments: TrainArguments) -> Accelerator:
    """Where to compute, in which precision, and who is told.

    Raises:
        ValueError: If this machine can't do what was asked for.
    """
    if AcceleratorState._shared_state:  # a training before this one in the same process
        AcceleratorState._reset_state()
    if arguments.report_to not in ("none", *(tracker.value for tracker in get_available_trackers())):
        raise ValueError(f"report_to: {arguments.report_to} is not installed. Run: pip install {arguments.report_to}")
    precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "no"
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            gradient_accumulation_steps=arguments.gradient_accumulation_steps,
            cpu=arguments.use_cpu,
            log_with=None if arguments.report_to == "none" else arguments.report_to,
            project_dir=arguments.output_dir,
        )
    except ValueError as error:
        raise ValueError(f"{' '.join(str(error).split())} (bf16={arguments.bf16}, fp16={arguments.fp16})") from error
    if arguments.fp16 and accelerator.device.type == "cpu":
        raise ValueError("fp16: got a CPU, expected a GPU. Use --bf16, or neither.")
    return accelerator
