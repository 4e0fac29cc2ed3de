"""Training one arm: the same recipe, seed and data order for every arm, only the fidelity differs."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.data.random_erasing import RandomErasing
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from timm_neutreno import set_fidelity, set_strengths, strengths
from timm_neutreno.support import find_vits

from . import extension, parallel, processes, run_directory
from .config import AdaptConfig, Recipe
from .data import Loader
from .errors import DEAD_WORKER, CliError, DataError, Interrupted, OutputError, TrainingError, one_line
from .evaluate import Evaluation, evaluate
from .loggers import Loggers, rewind
from .order import derive, seed_everything
from .processes import Processes
from .progress import Narrator
from .stopping import Stop

RAW, EMA = "raw", "ema"


@dataclass(frozen=True)
class Arm:
    """One of the trainings that a run compares.

    Attributes:
        name: "adapted" or "control".
        fidelity: Reached after the warm-up.
        fidelity_warmup: Epochs over which the fidelity rises from 0, step by step; 0 for none.
        directory: Where its checkpoints and metrics go.
        context: Written into the checkpoints, so that they tell what they are.
    """

    name: str
    fidelity: float
    fidelity_warmup: float
    directory: Path
    context: dict[str, Any]


@dataclass(frozen=True)
class Session:
    """What all arms of a run share."""

    config: AdaptConfig
    recipe: Recipe
    lr: float
    device: torch.device
    processes: Processes
    narrator: Narrator
    stop: Stop
    label: str  # of the run's folder, for messages

    @property
    def resume_line(self) -> str:
        return f"Go on with: neutreno-adapt --resume {self.label}"


@dataclass
class Progress:
    """How far an arm has come. With the weights and the optimizer, this is all that the next step depends on."""

    epoch: int = 0
    step: int = 0  # steps done in this epoch
    loss_sum: float = 0.0  # over those steps
    best: float = -1.0
    stale: int = 0  # epochs since the best
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)  # after the last whole epoch
    done: bool = False


def learning_rate(recipe: Recipe, given: float | None) -> float:
    """The given rate, or the recipe's for 512 images scaled to its batch."""
    return given if given is not None else recipe.lr * recipe.batch_size / 512


def ramp(fidelity: float, step: int, steps_per_epoch: int, warmup_epochs: float) -> float:
    """The fidelity at `step` (from 0): rises linearly from 0, so training starts from the checkpoint's function."""
    warmup_steps = warmup_epochs * steps_per_epoch
    return fidelity if step >= warmup_steps else fidelity * step / warmup_steps


def trainable(model: nn.Module, what: str) -> None:
    """Freeze all but `what`: all, the attention layers, the learnable fidelities, or nothing; the head trains always.

    Args:
        model: A NeuTRENO model.
        what: "all", "attention", "fidelity" or "head".
    """
    if what == "all":
        return
    chosen = {id(p) for p in model.get_classifier().parameters()} if what != "fidelity" else set()  # type: ignore[operator]
    if what in ("fidelity", "attention"):
        chosen |= {id(value) for value in strengths(model).values()}
    for owner in find_vits(model):
        if what == "attention":
            for name, parameter in owner.named_parameters():
                if ".attn." in name or ".attn_" in name:
                    chosen.add(id(parameter))
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and id(parameter) in chosen)


class Trainer:
    """One arm's model, optimizer, schedule and progress, and the loop over them.

    Args:
        model: A NeuTRENO model on the session's device.
        teacher: For distillation.
        train: Augmented images.
        val: Images to evaluate on; None if it is not to run to the end of an epoch.
        arm: What is trained, and where it goes.
        session: How.

    Raises:
        DataError: If there is not one batch.
        CheckpointError: If the arm has checkpoints and none is whole.
    """

    def __init__(
        self, model: nn.Module, teacher: nn.Module | None, train: Loader, val: Loader | None, arm: Arm, session: Session
    ):
        self.model, self.loader, self.val, self.arm, self.session = model, train, val, arm, session
        config, recipe, device = session.config, session.recipe, session.device
        self.steps = train.order.steps if train.order else min(train.rounds, config.limit_batches or train.rounds)
        if not self.steps:
            raise DataError("no training batches: there are fewer training images than --batch-size. Make it smaller.")
        seed_everything(derive("arm", config.seed))
        trainable(model, config.train)
        self.task = parallel.make_task(model, teacher, recipe, config, device)
        self.tensor_fidelity = config.compile and arm.fidelity_warmup > 0 and _make_tensors(model, device)
        parallel.prepare(self.task, model, recipe, config, device, session.processes)
        decay = recipe.layer_decay if recipe.layer_decay != 1.0 else None
        self.optimizer = create_optimizer_v2(
            model, opt="adamw", lr=session.lr, weight_decay=recipe.weight_decay, layer_decay=decay
        )
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer, sched="cosine", num_epochs=recipe.epochs, min_lr=recipe.min_lr, warmup_lr=session.lr / 100,
            warmup_epochs=recipe.warmup_epochs, step_on_epochs=False, updates_per_epoch=self.steps,
        )  # fmt: skip
        self.scaler = parallel.scaler(config, device)
        self.autocast = nullcontext() if config.fsdp else parallel.autocast(config, device)
        self.erase = (
            RandomErasing(recipe.random_erasing, mode="pixel", device=device) if recipe.random_erasing else None
        )
        self.progress = Progress()
        self.loggers: Loggers | None = None
        self.unread: list[Tensor] = []  # losses of the last steps, on the device
        self.between_steps = True  # weights, optimizer and schedule belong to one step
        self._restore()

    @property
    def first(self) -> bool:
        return self.session.processes.first

    @property
    def ema(self) -> nn.Module | None:
        averaged: Any = self.task.get_trainable_module(ema=True)
        return None if averaged is None else averaged.module

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
        progress = self.progress
        if self.first:
            rewind(self.arm.directory, lambda record: record["epoch"] <= progress.epoch)
            name = f"{self.session.label}/{self.arm.name}"
            self.loggers = Loggers(self.arm.directory, self.session.config.log, name, asdict(self.session.config))
        try:
            while not progress.done:
                seconds = self._train_epoch()
                self._end_epoch(*seconds)
        except (Exception, KeyboardInterrupt) as error:
            raise self._after(error) from error
        finally:
            if self.loggers:
                self.loggers.close()
        if self.tensor_fidelity:
            for model in filter(None, (self.model, self.ema)):
                _make_numbers(model, self.arm.fidelity)
        return {name: Evaluation(**value) for name, value in progress.evaluations.items()}

    def _train_epoch(self) -> tuple[float, float, int]:
        """The rest of an epoch; returns its seconds, those that it waited for data, and its steps."""
        progress, config, device = self.progress, self.session.config, self.session.device
        self.task.train()
        start, waited, first_step = time.perf_counter(), 0.0, progress.step
        if self.loader.order:
            self.loader.order.go_to(progress.epoch, progress.step)
        else:
            seed_everything(derive("epoch", config.seed, progress.epoch))
        batches = iter(self.loader.batches)
        window = 1 if device.type == "cpu" else 20  # reading a loss makes the host wait for the GPU
        title = f"{self.arm.name} {progress.epoch + 1}/{self.session.recipe.epochs}"
        for step in self.session.narrator.track(range(progress.step, self.steps), title, self.steps - progress.step):
            loss, wait = self._step(batches, step)
            waited += wait
            self.unread.append(loss)
            progress.step = step + 1
            reason, save = self._interruption(), self._saving(step)
            if len(self.unread) >= window or reason or save or step + 1 == self.steps:
                self._read_losses()
            if reason:
                raise Interrupted(f"{reason} in epoch {progress.epoch + 1} of the {self.arm.name} model.")
            if save:
                self.save()
        return time.perf_counter() - start, waited, self.steps - first_step

    def _step(self, batches: Any, step: int) -> tuple[Tensor, float]:
        """One optimizer step; returns its loss, on the device, and the seconds that it waited for data."""
        config, recipe, device, arm = self.session.config, self.session.recipe, self.session.device, self.arm
        epoch, rank, waited = self.progress.epoch, self.session.processes.rank, 0.0
        total = epoch * self.steps + step
        if arm.fidelity_warmup and total < arm.fidelity_warmup * self.steps + 1:
            set_fidelity(self.model, ramp(arm.fidelity, total, self.steps, arm.fidelity_warmup))
        loss = torch.zeros((), device=device)
        for part in range(config.accumulate):
            before = time.perf_counter()
            images, target = next(batches)
            waited += time.perf_counter() - before
            seed_everything(derive("step", config.seed, epoch, step, part, rank))
            images = self.erase(images) if self.erase else images
            if config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with self._no_sync() if part + 1 < config.accumulate else nullcontext(), self.autocast:
                share = self.task(images, target)["loss"] / config.accumulate
                self.scaler.scale(share).backward()
            loss += share.detach()
        self.between_steps = False
        if recipe.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.scheduler.step_update(total + 1)
        self.task.update_ema(step=total)
        self.between_steps = True
        return loss, waited

    def _no_sync(self) -> Any:
        """Gradients travel in the last accumulation step only; FSDP shards them in each, to keep its memory small."""
        return nullcontext() if self.session.config.fsdp else self.task.no_sync()

    def _read_losses(self) -> None:
        """Sum the losses up, each process its own; refuse one that is not finite."""
        values = torch.stack(self.unread).tolist() if self.unread else []
        self.unread.clear()
        first = self.progress.step - len(values)
        for index, value in enumerate(values):
            if not math.isfinite(value):
                self._not_finite(value, first + index)
            self.progress.loss_sum += value

    def _not_finite(self, value: float, step: int) -> None:
        epoch = self.progress.epoch
        self.between_steps = False  # what is in memory may be spoilt, what is on the disk is not
        files = self.loader.names(epoch, step)
        where = ""
        if files:
            path = self.arm.directory / "not_finite.json"
            where = f" The files of its batch are in {path}, the first is {files[0]}."
            record = {"arm": self.arm.name, "epoch": epoch + 1, "step": step + 1, "loss": str(value), "files": files}
            run_directory.write_text(path, json.dumps(record, indent=2) + "\n")
        raise TrainingError(
            f"the loss became {value} in step {step + 1} (epoch {epoch + 1}) of the {self.arm.name} model.{where} "
            f"Lower --lr, raise --warmup-epochs, or pass --no-amp. Earlier checkpoints are in {self.arm.directory}."
        )

    def _interruption(self) -> str | None:
        """Why to stop now. Rank 0 decides and saves; a sharded model is saved by all, so that all must agree."""
        stop = self.session.stop
        if not self.session.config.fsdp:
            return stop.reason if self.first else None
        reasons = processes.collect(stop.reason)
        return next((reason for reason in reasons if reason), None)

    def _saving(self, step: int) -> bool:
        every = self.session.config.save_every_steps
        return bool(every and self.loader.order and (step + 1) % every == 0 and step + 1 < self.steps)

    def _end_epoch(self, seconds: float, waited: float, steps: int) -> None:
        progress, recipe, patience = self.progress, self.session.recipe, self.session.config.patience
        shares = processes.collect(progress.loss_sum)
        train_loss = sum(shares) / len(shares) / self.steps
        last = progress.epoch + 1 >= recipe.epochs
        evaluations = self.evaluations(similarity=last)
        raw = evaluations[RAW]
        better = raw.top1 > progress.best
        stale = 0 if better else progress.stale + 1
        tired = patience is not None and stale >= patience
        if tired and not last:
            evaluations = self.evaluations(similarity=True)
        # from here on nothing interrupts: an epoch that is evaluated anew must not count twice
        progress.best, progress.stale = max(raw.top1, progress.best), stale
        progress.evaluations = {name: asdict(value) for name, value in evaluations.items()}
        self._record(train_loss, evaluations, seconds, waited, steps)
        if tired and not last:
            self.say(f"{self.arm.name:>8}  no better top-1 for {progress.stale} epochs: stopped early")
        progress.done = last or tired
        progress.epoch, progress.step, progress.loss_sum = progress.epoch + 1, 0, 0.0
        self.save(best=better)

    def evaluations(self, similarity: bool) -> dict[str, Evaluation]:
        """Of the raw weights, and of the averaged ones beside them."""
        session, results = self.session, {}
        for name, model in ((RAW, self.model), (EMA, self.ema)):
            if model is not None:
                if name == EMA and self.arm.fidelity_warmup and not session.config.learnable_fidelity:
                    set_fidelity(model, self.fidelity)
                assert self.val is not None
                results[name] = evaluate(
                    model,
                    self.val,
                    session.device,
                    self.autocast,
                    similarity=similarity,
                    stop=None if session.config.fsdp else session.stop,  # one process alone cannot stop there
                )
        return results

    @property
    def fidelity(self) -> float:
        """That of the last step that was done."""
        total = self.progress.epoch * self.steps + self.progress.step - 1
        return ramp(self.arm.fidelity, total, self.steps, self.arm.fidelity_warmup)

    def _record(
        self, loss: float, evaluations: dict[str, Evaluation], seconds: float, waited: float, steps: int
    ) -> None:
        """One line of the log, and one for the reader."""
        progress, session, raw = self.progress, self.session, evaluations[RAW]
        speed = steps * session.recipe.batch_size / seconds if steps else None
        share = waited / seconds if steps else None
        record = {
            "arm": self.arm.name,
            "epoch": progress.epoch + 1,
            "train_loss": loss,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "fidelity": self.fidelity,
            "images_per_second": speed,
            "data_wait_share": share,
            "memory_mib": memory(session.device),
            **{f"val_{key}": value for key, value in asdict(raw).items()},
        }
        text = f"val loss {raw.loss:.4f}  top-1 {raw.top1:.2f}"
        if EMA in evaluations:
            record.update({f"val_ema_{key}": value for key, value in asdict(evaluations[EMA]).items()})
            text += f"  EMA {evaluations[EMA].top1:.2f}"
        if self.loggers:
            self.loggers.log(record)
        rate = f"  {speed:.0f} img/s" if speed else ""
        epoch = f"epoch {progress.epoch + 1:>3}/{session.recipe.epochs}"
        self.say(f"{self.arm.name:>8}  {epoch}  train loss {loss:.4f}  {text}{rate}")
        # on the CPU loader and model share the cores; the first epoch starts the loader
        if share and share > 0.2 and progress.epoch == 1 and session.device.type != "cpu":
            self.say(
                f"warning: {100 * share:.0f} % of the time went into waiting for data. More --workers, fewer "
                "augmentations, or images stored at a smaller size would help."
            )

    def say(self, line: str) -> None:
        self.session.narrator.say(line)

    # --- saving and resuming

    def save(self, best: bool = False) -> None:
        """Write last.pth.tar, and best.pth.tar if asked; rank 0 writes, a sharded model is gathered by all."""
        config, progress = self.session.config, self.progress
        if not (self.first or config.fsdp):
            return
        shares = processes.collect(progress.loss_sum) if config.fsdp else [progress.loss_sum]
        weights, optimizer = parallel.states(self.model, self.optimizer, config.fsdp)
        if self.first:
            self._write(weights, optimizer, sum(shares) / len(shares), best)
        if config.fsdp:
            processes.agree(None)  # the others do not leave before it is written

    def _write(self, weights: dict[str, Any], optimizer: dict[str, Any], loss_sum: float, best: bool) -> None:
        progress = self.progress
        state = {
            **self.arm.context,
            "epoch": progress.epoch - 1,  # as timm counts: the last whole one, from 0
            "state_dict": weights,
            "optimizer": optimizer,
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(progress),
            "loss_sum": loss_sum,
            "epochs": self.session.recipe.epochs,  # that the learning rates are planned for
            "metric": progress.evaluations.get(RAW, {}).get("top1"),
            "fidelity": self.arm.fidelity,
            "version": 2,
        }
        if self.ema is not None:
            state["state_dict_ema"] = self.ema.state_dict()
        if best:
            run_directory.save_checkpoint(self.arm.directory / run_directory.BEST, state)
        run_directory.save_checkpoint(self.arm.directory / run_directory.LAST, state)

    def _restore(self) -> None:
        """Go to where the arm's newest whole checkpoint stands, if there is one."""
        state, warning = run_directory.load_checkpoint(self.arm.directory)
        if warning and self.first:
            print(f"warning: {warning}", file=sys.stderr)
        if state is None:
            return
        own = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        parallel.restore(self.model, self.optimizer, state, self.session.config.fsdp)
        for group, values in zip(self.optimizer.param_groups, own, strict=True):
            group.update(values)  # this run's rates and decay, which may have been changed, not the checkpoint's
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.progress.loss_sum = state["loss_sum"]
        if self.ema is not None:
            self.ema.load_state_dict(state["state_dict_ema"])
        if extension.planned(state, self.steps) != self.session.recipe.epochs:
            self.progress.done, self.progress.stale = False, 0
        if total := self.progress.epoch * self.steps + self.progress.step:
            self.scheduler.step_update(total)
            # a learnable one is in the weights, and is no longer the ramp's after the warm-up
            if self.arm.fidelity_warmup and not self.session.config.learnable_fidelity:
                set_fidelity(self.model, self.fidelity)
        if not self.progress.done:
            where = f"epoch {self.progress.epoch + 1}, step {self.progress.step + 1} of {self.steps}"
            self.say(f"{self.arm.name:>8}  goes on in {where}")

    def _after(self, error: BaseException) -> BaseException:
        """Save what can be saved, and tell what happened in one sentence."""
        signal, able = self.session.stop.signal, self.first
        if self.session.config.fsdp:
            able = isinstance(error, Interrupted)
        found = error if isinstance(error, CliError) else explain(error)
        if isinstance(error, KeyboardInterrupt) or (signal and not isinstance(error, CliError)):
            found = Interrupted(f"interrupted by {signal or 'Ctrl-C'} in epoch {self.progress.epoch + 1}.")
        kept = self._save_in_need(able and not isinstance(error, OutputError))
        return type(found)(f"{one_line(found)} {kept}") if isinstance(found, CliError) else found

    def _save_in_need(self, able: bool) -> str:
        """After an error, save if this process can: rank 0 alone, or all of a sharded model, which agreed to stop."""
        saved = self.arm.directory / run_directory.LAST
        whole = self.between_steps and (self.loader.order is not None or self.progress.step in (0, self.steps))
        kept = f"The last checkpoint is in {saved.parent}." if saved.exists() else "No step was saved."
        if able and whole and (self.progress.epoch or self.progress.step):
            try:
                self._read_losses()  # one that is not finite is not saved
                _whatever_dies(self.save)
                kept = f"Everything up to then is saved in {saved.parent}."
            except CliError as error:
                kept = f"{kept} Saving failed: {one_line(error)}"
        return f"{kept} {self.session.resume_line}"


def _whatever_dies(save: Callable[[], None]) -> None:
    """Call it again if a loader process that dies breaks in: torch raises that wherever Python happens to be."""
    for _ in range(8):
        try:
            return save()
        except RuntimeError as error:
            if DEAD_WORKER not in str(error):
                raise
    raise OutputError("loader processes die one after another.")


NO_MEMORY = ("not enough memory", "out of memory", "can't allocate memory", "Cannot allocate memory")


def explain(error: BaseException) -> BaseException:
    """A user's sentence for what torch raises; the error itself if it is none of these."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in NO_MEMORY):
        return TrainingError(
            f"out of memory ({one_line(error)[:160]}). --accumulate 2 (or 4, ...) halves what a step needs at the same "
            "result, --grad-checkpointing keeps fewer activations, --amp halves them, --fsdp shards the optimizer over "
            "processes; a smaller --batch-size changes the recipe."
        )
    if DEAD_WORKER in text:
        return DataError(
            f"a data loader process died: {one_line(error)[:200]} Mostly memory ran out: use fewer --workers, or free "
            "memory (in a container: a larger /dev/shm)."
        )
    if processes.lost_contact(error):
        return LostContact(
            f"contact with another process of the run was lost ({one_line(error)[:160]}). If it has printed no error, "
            "it was killed, mostly because memory ran out."
        )
    return error


class LostContact(CliError):
    """Only the trace of another process's error."""


def _make_tensors(model: nn.Module, device: torch.device) -> bool:
    """Hold the fidelities in tensors while they rise: torch.compile would compile anew for every number."""
    if all(isinstance(value, Tensor) for value in strengths(model).values()):
        return False
    set_strengths(model, as_tensors=True, fidelity=0.0)
    return True


def _make_numbers(model: nn.Module, fidelity: float) -> None:
    set_strengths(model, as_tensors=False, fidelity=fidelity)


def memory(device: torch.device) -> float | None:
    """The most that was in use so far, in MiB: of the GPU's memory, or of this process's."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)
