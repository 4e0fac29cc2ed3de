"""Training one arm: the same recipe, seed and images for every arm, only the method differs.

The loop alone. What is saved is in state.py, what happens when something dies in failures.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from timm.data.random_erasing import RandomErasing
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from timm_neutreno import set_strengths

from ..data.loaders import BatchLoader
from ..data.order import derive_seed, seed_everything
from ..errors import DataError, Interrupted
from ..reports import epochs as epochs_report
from ..reports.epochs import Pace, TimeLeft
from ..runtime import processes
from ..runtime.loggers import Loggers, rewind
from ..tasks.anchor import GramAnchor
from . import failures, lora, setup, state
from .arms import Arm
from .evaluate import Evaluation, evaluate
from .setup import RunContext
from .state import EMA, RAW, TrainState
from .tasks import TASKS

POWER = 0.9  # of the polynomial schedule (Strudel et al. 2021); the cosine has none


class Trainer:
    """One arm's model, optimizer, schedule and state, and the loop over them.

    Args:
        model: The arm's model as its training starts, on the context's device.
        architecture: Its name in timm, for the checkpoints.
        teacher: For distillation; None for none.
        train: Augmented images.
        val: Images to evaluate on; None if it is not to run to the end of an epoch.
        arm: What is trained, and where it goes.
        context: What the arms share.
        place: Of this training among all, as the panel shows it, such as "arm 2/3".
        after: How many trainings follow.
        start: The model that --anchor holds on to; None for none.

    Raises:
        DataError: If there is not one batch.
        CheckpointError: If the arm has checkpoints and none is complete.
    """

    def __init__(
        self, model: nn.Module, architecture: str, teacher: nn.Module | None, train: BatchLoader,
        val: BatchLoader | None, arm: Arm, context: RunContext, place: str = "", after: int = 0,
        start: nn.Module | None = None,
    ):  # fmt: skip
        self.model, self.architecture, self.loader, self.val = model, architecture, train, val
        self.arm, self.context, self.config = arm, context, context.config
        config, device = self.config, context.device
        self.first, self.steps = context.world.first, train.steps
        if not self.steps:
            raise DataError("no training batches: there are fewer training images than --batch-size. Make it smaller.")
        seed_everything(derive_seed("arm", config.seed))
        if config.trainable == "lora":
            lora.add(model, config)
        setup.freeze_except(model, config.trainable)
        setup.freeze_blocks(model, config.freeze_blocks)
        self.rules = TASKS[config.task].rules
        self.task = self.rules.training_task(model, teacher, config, device, train.images)
        self.ramps_number = arm.warmup > 0 and not arm.options.get("learnable_fidelity")
        if self.ramps_number and config.compile:  # torch.compile would compile anew for every number
            set_strengths(model, fidelity=0.0, as_tensors=True)
        setup.prepare(self.task, model, config, device, context.world)
        # after the averaged copy was made, which is to have no part in it
        self.anchor = GramAnchor(model, start, config.anchor_weight, device) if start is not None else None
        self.optimizer = create_optimizer_v2(
            model, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay,
            layer_decay=config.layer_decay if config.layer_decay != 1.0 else None,
        )  # fmt: skip
        assert config.lr is not None
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer, sched=config.sched, num_epochs=config.epochs, min_lr=config.min_lr,
            warmup_lr=config.lr / 100, warmup_epochs=config.lr_warmup, step_on_epochs=False,
            updates_per_epoch=self.steps, decay_rate=POWER,
        )  # fmt: skip
        self.scaler = setup.grad_scaler(config, device)
        self.autocast = nullcontext() if config.fsdp else setup.autocast(config, device)
        erasing = config.random_erasing
        # here and not in the loader: its noise follows the step's seed, whichever loader process had the image
        self.erase = RandomErasing(erasing, mode="pixel", device=device) if erasing else nn.Identity()
        self.state = TrainState()
        self.loggers: Loggers | None = None
        self.pending_losses: list[Tensor] = []  # (2,) of the last steps, on the device: loss, and a sum of the images
        self.state_is_consistent = True  # weights, optimizer and schedule belong to one step
        self.place, self.after, self.eta = place, after, TimeLeft(self.steps * config.epochs)
        self._resume()

    # --- the story

    def run(self) -> dict[str, Evaluation]:
        """Train to the end, or until early stopping.

        Returns:
            The evaluations after the last epoch: "raw", and "ema" if weights are averaged.

        Raises:
            Interrupted: On a signal or at the time limit; everything is saved.
            TrainingError: If the loss is not finite, or memory runs out.
            DataError: If an image cannot be read, or a loader process died.
            OutputError: If a checkpoint cannot be written; the one before is still there.
        """
        self._open_loggers()
        try:
            with failures.saved(self):
                while not self.state.done:
                    pace = self.train_epoch()
                    self.end_epoch(pace)
        finally:
            self.context.console.figures.clear()
            if self.loggers:
                self.loggers.close()
        if self.ramps_number and self.config.compile:
            for model in filter(None, (self.model, self.ema)):
                set_strengths(model, fidelity=self.arm.options["fidelity"], as_tensors=False)
        return self.state.evaluations

    def train_epoch(self) -> Pace:
        """The epoch's steps, or those that are left of it."""
        now, first_step, start, waited = self.state, self.state.step, time.perf_counter(), 0.0
        self.task.train()
        self.loader.sampler.set_position(now.epoch, now.step)
        batches = iter(self.loader.batches)
        title = f"epoch {now.epoch + 1}/{self.config.epochs}, {self._title}"
        tracked = self.context.console.track(range(now.step, self.steps), title, self.steps, now.step)
        with closing(tracked) as steps:
            for step in steps:
                waited += self.train_step(batches, step)
                now.step = step + 1
                self._stop_or_save()
                self._show(Pace(time.perf_counter() - start, waited, now.step - first_step))
        return Pace(time.perf_counter() - start, waited, self.steps - first_step)

    def train_step(self, batches: Iterator[Any], step: int) -> float:
        """One optimizer step, in as many forward and backward passes as --accumulate says.

        Returns:
            The seconds that it waited for data.
        """
        config, now, waited = self.config, self.state, 0.0
        total = now.epoch * self.steps + step
        if self.arm.warmup and total < self.arm.warmup * self.steps + 1:
            self._set_fidelity(total)
        figures = torch.zeros(2, device=self.context.device)
        for part in range(config.accumulate):
            asked = time.perf_counter()
            images, target = next(batches)
            waited += time.perf_counter() - asked
            seed_everything(derive_seed("step", config.seed, now.epoch, step, part, self.context.world.rank))
            images = self.erase(images)
            if config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with self._unsynchronised() if part + 1 < config.accumulate else nullcontext(), self.autocast:
                loss = self.task(images, target)["loss"]
                if self.anchor:
                    loss = loss + self.anchor(images)
                loss = loss / config.accumulate
                self.scaler.scale(loss).backward()
            figures += torch.stack([loss.detach().float(), (step + 1) * images.float().mean() / config.accumulate])
        self._update(total)
        self.pending_losses.append(figures)
        return waited

    def _update(self, total: int) -> None:
        """Weights, optimizer, schedule and averages go on to the next step, together."""
        self.state_is_consistent = False
        if self.config.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.scheduler.step_update(total + 1)
        self.task.update_ema(step=total)
        self.state_is_consistent = True

    def end_epoch(self, pace: Pace) -> None:
        """Evaluate, decide whether to go on, log, save."""
        now, config = self.state, self.config
        sums = processes.all_gather((now.loss_sum, now.images_sum))
        train_loss, images_sum = (sum(values) / len(values) / self.steps for values in zip(*sums, strict=True))
        last = now.epoch + 1 >= config.epochs
        evaluations = self.evaluate(similarity=last)
        main = evaluations[RAW][self.rules.MAIN]
        better = main > now.best
        epochs_since_best = 0 if better else now.epochs_since_best + 1
        out_of_patience = not last and config.patience is not None and epochs_since_best >= config.patience
        if out_of_patience:
            evaluations = self.evaluate(similarity=True)
        # from here on nothing interrupts: an epoch that is evaluated anew must not count twice
        now.best, now.epochs_since_best, now.evaluations = max(main, now.best), epochs_since_best, evaluations
        self._log({"train_loss": train_loss, "images_sum": images_sum}, evaluations, pace)
        if out_of_patience:
            name = epochs_report.NAMES[self.rules.MAIN]
            self.say(f"{self.arm.name:>8}  no better {name} for {epochs_since_best} epochs: stopped early")
        now.done = last or out_of_patience
        now.epoch, now.step, now.loss_sum, now.images_sum = now.epoch + 1, 0, 0.0, 0.0
        state.save(self, best=better)

    def evaluate(self, similarity: bool) -> dict[str, Evaluation]:
        """The raw weights' figures, and the averaged ones' beside them."""
        context, results = self.context, {}
        for name, model in ((RAW, self.model), (EMA, self.ema)):
            if model is None:
                continue
            if name == EMA and self.ramps_number:
                self._set_fidelity(self.state.epoch * self.steps + self.state.step - 1, model)
            assert self.val is not None
            stop = None if self.config.fsdp else context.stop  # of a sharded model one process alone cannot stop there
            results[name] = evaluate(
                model, self.val, context.device, self.autocast, self.rules, similarity=similarity, stop=stop,
                console=context.console, title=f"evaluating {self._title}{', EMA' if name == EMA else ''}",
            )  # fmt: skip
        return results

    # --- parts of it

    @property
    def ema(self) -> nn.Module | None:
        """The model with averaged weights; None if they are not averaged."""
        averaged: Any = self.task.get_trainable_module(ema=True)
        return None if averaged is None else averaged.module

    def fidelity(self, total: int) -> float:
        """The fidelity in a step: rises linearly from 0, so that training starts from the checkpoint's function."""
        end, steps = self.arm.options["fidelity"], self.arm.warmup * self.steps
        return end if total >= steps else end * total / steps

    def _set_fidelity(self, total: int, model: nn.Module | None = None) -> None:
        set_strengths(model or self.model, fidelity=self.fidelity(total))

    def _unsynchronised(self) -> AbstractContextManager:
        """Gradients travel in the last accumulation step only; FSDP shards them in each, to keep its memory small."""
        return nullcontext() if self.config.fsdp else self.task.no_sync()

    def read_losses(self) -> None:
        """Add up what the last steps gave, each process its own.

        Raises:
            TrainingError: If a loss is not finite.
        """
        values = torch.stack(self.pending_losses).tolist() if self.pending_losses else []
        self.pending_losses.clear()
        first = self.state.step - len(values)
        for index, (loss, images_sum) in enumerate(values):
            failures.check_finite(self, loss, first + index)
            self.state.loss_sum += loss
            self.state.images_sum += images_sum

    def _stop_or_save(self) -> None:
        """After a step: read the losses now and then, end if asked to, save if --save-every-steps says so."""
        step, every = self.state.step, self.config.save_every_steps
        reason = self._interruption()
        save = bool(every and step % every == 0 and step < self.steps)
        window = 1 if self.context.device.type == "cpu" else 20  # reading a loss makes the host wait for the GPU
        if len(self.pending_losses) >= window or reason or save or step == self.steps:
            self.read_losses()
        if reason:
            raise Interrupted(f"{reason} in epoch {self.state.epoch + 1} of the {self.arm.name} model.")
        if save:
            state.save(self)

    def _interruption(self) -> str | None:
        """Why to stop now. Rank 0 decides and saves; a sharded model is saved by all, so that all must agree."""
        stop = self.context.stop
        if not self.config.fsdp:
            return stop.reason if self.first else None
        return next((reason for reason in processes.all_gather(stop.reason) if reason), None)

    def _resume(self) -> None:
        """Go to where the arm was, if it has begun."""
        warning = state.restore(self)
        if warning and self.first:
            self.context.console.warn(warning)
        now = self.state
        total = now.epoch * self.steps + now.step
        if not total:
            return
        self.scheduler.step_update(total)
        if self.ramps_number:  # a parameter is in the checkpoint, and no longer the ramp's after the warm-up
            self._set_fidelity(total - 1)
        if not now.done:
            self.say(f"{self.arm.name:>8}  goes on in epoch {now.epoch + 1}, step {now.step + 1} of {self.steps}")

    def _open_loggers(self) -> None:
        if self.first:
            done = self.state.epoch
            rewind(self.arm.directory, lambda record: record["epoch"] <= done)
            name = f"{self.context.folder}/{self.arm.name}"
            config = {key: value for key, value in asdict(self.config).items() if key != "given"}
            self.loggers = Loggers(self.arm.directory, self.config.log, name, config)

    def _log(self, sums: dict[str, float], evaluations: dict[str, Evaluation], pace: Pace) -> None:
        """One line of the log, and one for the reader."""
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        known = {**sums, "lr": lr, "memory_mib": setup.peak_memory(self.context.device)}
        arm, epoch, batch_size = self.arm.name, self.state.epoch + 1, self.config.batch_size
        record = epochs_report.record(arm, epoch, known, pace, batch_size, evaluations)
        if self.loggers:
            self.loggers.log(record)
        self.say(epochs_report.line(record, self.config.epochs))
        # on the CPU loader and model share the cores; the first epoch starts the loader
        if self.state.epoch == 1 and self.context.device.type != "cpu" and (words := epochs_report.waiting(record)):
            self.context.console.warn(words)

    @property
    def _title(self) -> str:
        return f"{self.arm.name} ({self.place})" if self.place else self.arm.name

    def _show(self, pace: Pace) -> None:
        """The panel's figures, after a step."""
        now, console = self.state, self.context.console
        if console.quiet:
            return
        total = now.epoch * self.steps + now.step
        arm_left, run_left = self.eta.after(total, self.after)
        rising = self.arm.warmup and total < self.arm.warmup * self.steps
        console.show(
            loss=now.loss_sum / now.step,
            lr=max(group["lr"] for group in self.optimizer.param_groups),
            fidelity=self.fidelity(total) if rising else None,
            images_per_second=pace.steps * self.config.batch_size / pace.seconds,
            waiting=pace.waited / pace.seconds,
            memory_mib=setup.peak_memory(self.context.device),
            arm_left=arm_left,
            run_left=run_left,
        )

    def say(self, line: str) -> None:
        self.context.console.say(line)
