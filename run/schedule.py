"""When what happens in a training: batches, steps, learning rates, validations."""

import math
from dataclasses import dataclass

from data import make_batches


@dataclass(frozen=True)
class Schedule:
    """One training's settings, from the arguments. `notes` counts the rows of the training split."""

    notes: int
    epochs: int
    batch_size: int
    accumulate: int  # batches per step
    rate: float  # the peak learning rate
    warmup: float  # share of the steps with a rising rate
    weight_decay: float
    clip: float
    eval_steps: int
    patience: int
    seed: int
    precision: str
    compile: bool
    save_minutes: float

    @classmethod
    def of(cls, args, notes, rate):
        """The schedule of parsed arguments for so many notes."""
        same = {name: getattr(args, name) for name in cls.__dataclass_fields__ if hasattr(args, name)}
        return cls(**{**same, "notes": notes, "rate": rate})

    @property
    def steps(self):
        """Optimizer steps per epoch."""
        return math.ceil(math.ceil(self.notes / self.batch_size) / self.accumulate)

    def step_of(self, progress):
        """Optimizer steps taken so far, in all epochs."""
        return progress.epoch * self.steps + progress.step

    def share(self, progress):
        """The share of the training that is done, in [0, 1]."""
        return self.step_of(progress) / (self.steps * self.epochs)

    def learning_rate(self, progress):
        """The rate of the next step."""
        return learning_rate(self.share(progress), self.rate, self.warmup)

    def epoch_steps(self, lengths, progress):
        """The steps of this epoch still to take: a list of steps, each a list of batches of row numbers."""
        batches = make_batches(lengths, self.batch_size, seed=[self.seed, progress.epoch])
        steps = [batches[i : i + self.accumulate] for i in range(0, len(batches), self.accumulate)]
        return steps[progress.step :]

    def validates(self, progress):
        """Whether to validate after the step just taken: at the end of an epoch, and every --eval-steps."""
        ends = progress.step == self.steps
        return ends or bool(self.eval_steps and self.step_of(progress) % self.eval_steps == 0)

    def epoch_label(self, progress):
        """Epochs done, for the score files: 2, or 1.5 in the middle of one."""
        if progress.step == self.steps:
            return progress.epoch + 1
        return round(self.step_of(progress) / self.steps, 3)


def learning_rate(progress, peak, warmup):
    """Linear rise over the warm-up share, then a cosine to zero; progress in [0, 1]."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1 - warmup, 1e-9)))
