"""Where a training stands, and the file from which an interrupted one goes on.

One safetensors file holds weights, best weights, Adam's moments and the random state; beside it a JSON file
holds the arguments that it was made with. Both are gone once the run is finished.
"""

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file

from files import read_json, write_json


@dataclass
class Position:
    """Where a training stands; JSON, but for the best weights."""

    epoch: int = 0  # epochs finished
    step: int = 0  # optimizer steps taken in this epoch
    loss: float = 0.0  # training loss since the last validation, summed over notes
    seen: int = 0  # notes in that sum
    history: list = field(default_factory=list)  # rows of scores, one per validation
    best: dict | None = None  # the best of them
    stopped: bool = False  # by --patience
    seconds: float = 0.0
    best_weights: dict | None = field(default=None, repr=False)

    @property
    def since_best(self):
        """Validations after the best one."""
        return len(self.history) - 1 - self.history.index(self.best) if self.best else 0

    def keep(self, row, model):
        """Take a validation's row, and the model's weights as the best so far."""
        self.best = row
        self.best_weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def next_epoch(self):
        """Begin the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0


class ProgressFile:
    """The progress file of a run, and the clock by which it is written."""

    def __init__(self, path, minutes):
        self.path, self.minutes = Path(path), minutes
        self.description = self.path.with_suffix(".json")
        self.began = self.saved = time.perf_counter()

    def settle(self, arguments):
        """Keep what an unfinished run left if it was made with these arguments, else start anew."""
        if self.path.exists() and self.description.exists() and read_json(self.description) == arguments:
            position = self._position()
            print(f"resuming at epoch {position.epoch + 1}, step {position.step + 1}")
            return
        self.path.unlink(missing_ok=True)
        write_json(self.description, arguments)

    def remove(self):
        """Remove both files."""
        self.path.unlink(missing_ok=True)
        self.description.unlink(missing_ok=True)

    def due(self):
        """Whether the last save is more than --save-minutes ago."""
        return time.perf_counter() - self.saved > 60 * self.minutes

    def save(self, position, model, optimizer):
        """Write weights, best weights, moments, random state and position, whole."""
        self.saved = time.perf_counter()
        position.seconds, self.began = position.seconds + self.saved - self.began, self.saved
        tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
        tensors.update({f"best/{name}": value for name, value in (position.best_weights or {}).items()})
        for index, moments in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer/{index}/{name}": value for name, value in moments.items()})
        tensors.update({f"random/{device}": state for device, state in random_states().items()})
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}

        best_weights, position.best_weights = position.best_weights, None
        words = json.dumps(asdict(position))
        position.best_weights = best_weights
        temporary = self.path.with_suffix(".tmp")
        save_file(tensors, temporary, {"position": words})
        os.replace(temporary, self.path)

    def load(self, model, optimizer):
        """Put weights, moments and random state back. Returns the position; the first one if there is no file."""
        self.began = self.saved = time.perf_counter()
        if not self.path.exists():
            return Position()
        position = self._position()
        parts = {"model": {}, "best": {}, "optimizer": {}, "random": {}}
        for key, value in load_file(self.path).items():
            part, _, name = key.partition("/")
            parts[part][name] = value
        model.load_state_dict(parts["model"])
        state = optimizer.state_dict()
        for key, value in parts["optimizer"].items():
            index, name = key.split("/")
            state["state"].setdefault(int(index), {})[name] = value
        optimizer.load_state_dict(state)
        restore_random_states(parts["random"])
        position.best_weights = parts["best"] or None
        return position

    def _position(self):
        with safetensors.safe_open(self.path, "pt") as file:
            return Position(**json.loads(file.metadata()["position"]))


def random_states():
    """The state of the random numbers of every device there is, {device: tensor}."""
    states = {"cpu": torch.get_rng_state()}
    for name in ("cuda", "mps"):
        if getattr(torch, name).is_available():
            states[name] = getattr(torch, name).get_rng_state()
    return states


def restore_random_states(states):
    """Put random states back, of the devices that are there."""
    torch.set_rng_state(states["cpu"])
    for name in ("cuda", "mps"):
        if name in states and getattr(torch, name).is_available():
            getattr(torch, name).set_rng_state(states[name])


class LossMeter:
    """The training loss since the last validation, summed on the device, so that a GPU need not wait."""

    def __init__(self, position, device):
        self.total, self.seen = torch.tensor(position.loss, device=device), position.seen

    def add(self, loss, notes):
        """Add a batch's mean loss, a scalar tensor."""
        self.total += loss.detach() * notes
        self.seen += notes

    def read(self, position):
        """Write sum and count into the position; waits for the device. Returns the mean."""
        position.loss, position.seen = self.total.item(), self.seen
        return position.loss / max(1, position.seen)

    def reset(self, position):
        """Begin again after a validation."""
        self.total, self.seen = torch.zeros_like(self.total), 0
        position.loss, position.seen = 0.0, 0


class TrainingClock:
    """Tokens per second of this process's training, validation left out."""

    def __init__(self):
        self.began, self.waited, self.tokens = time.perf_counter(), 0.0, 0

    def read(self, lengths):
        """Count the tokens of a batch's rows."""
        self.tokens += int(lengths.sum())

    @contextlib.contextmanager
    def paused(self):
        """Do not count the time in here."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def tokens_per_s(self):
        """Tokens per second so far; None if none was read."""
        took = time.perf_counter() - self.began - self.waited
        return round(self.tokens / took) if self.tokens else None
