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

    def step_of(self, position):
        """Optimizer steps taken so far, in all epochs."""
        return position.epoch * self.steps + position.step

    def share(self, position):
        """The share of the training that is done, in [0, 1]."""
        return self.step_of(position) / (self.steps * self.epochs)

    def learning_rate(self, position):
        """The rate of the next step."""
        return learning_rate(self.share(position), self.rate, self.warmup)

    def epoch_steps(self, lengths, position):
        """The steps of this epoch still to take: a list of steps, each a list of batches of row numbers."""
        batches = make_batches(lengths, self.batch_size, seed=[self.seed, position.epoch])
        steps = [batches[i : i + self.accumulate] for i in range(0, len(batches), self.accumulate)]
        return steps[position.step :]

    def validates(self, position):
        """Whether to validate after the step just taken: at the end of an epoch, and every --eval-steps."""
        ends = position.step == self.steps
        return ends or bool(self.eval_steps and self.step_of(position) % self.eval_steps == 0)

    def epoch_label(self, position):
        """Epochs done, for the score files: 2, or 1.5 in the middle of one."""
        if position.step == self.steps:
            return position.epoch + 1
        return round(self.step_of(position) / self.steps, 3)


def learning_rate(share, peak, warmup):
    """Linear rise over the warm-up share, then a cosine to zero; share in [0, 1]."""
    if share < warmup:
        return peak * share / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (share - warmup) / max(1 - warmup, 1e-9)))
