"""Where a training stands, and the files from which an interrupted one goes on.

A progress file is one safetensors file: weights, best weights, Adam's moments, the random state; in its
header the position, the arguments and a checksum. The two latest files are kept, so that a damaged one costs
one save and not the training. They are gone once the run is finished.
"""

import contextlib
import hashlib
import json
import os
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import safetensors
import torch

from cli import BadInput
from files import Unwritable, remove_remains, write_tensors, writing
from run.processes import agreed, is_first
from run.untrusted import check_file


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

    def words(self):
        """All but the best weights, as JSON."""
        names = [part.name for part in fields(self) if part.name != "best_weights"]
        return json.dumps({name: getattr(self, name) for name in names})

    def next_epoch(self):
        """Begin the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0


class ProgressFile:
    """The progress files of a run, and the clock by which they are written."""

    def __init__(self, path, minutes):
        self.path, self.minutes = Path(path), minutes
        self.earlier = self.path.with_suffix(".earlier.safetensors")
        self.arguments, self.found = "", None  # found: (Position, its tensors) to go on from
        self.began = self.saved = time.perf_counter()

    def settle(self, arguments):
        """Find what an unfinished run with these arguments left; remove what one with others left."""
        self.arguments = json.dumps(arguments, sort_keys=True)
        for place in (self.path, self.earlier):
            self.found = self._read(place) if place.exists() else None
            if self.found:
                break
        words = self.found and self.found[0].words()
        if agreed(words) != words:
            raise BadInput(
                f"{self.path}: not the same for all processes; give an --out that all machines share"
            )
        if self.found:
            position = self.found[0]
            print(f"resuming at epoch {position.epoch + 1}, step {position.step + 1}")
            if place != self.path and is_first():
                self.path.unlink(missing_ok=True)  # or the next save puts it in the place of the good one
        elif is_first():
            self.remove()

    def remove(self):
        """Remove them, and what a process that was killed in a save left of one."""
        remove_remains(self.path)
        self.path.unlink(missing_ok=True)
        self.earlier.unlink(missing_ok=True)

    def due(self):
        """Whether the last save is more than --save-minutes ago."""
        return time.perf_counter() - self.saved > 60 * self.minutes

    def save(self, position, model, optimizer):
        """Write weights, best weights, moments, random state and position, whole.

        If the disk is full, say so; the training goes on.
        """
        self.saved = time.perf_counter()
        position.seconds, self.began = position.seconds + self.saved - self.began, self.saved
        if not is_first():
            return
        tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
        tensors.update({f"best/{name}": value for name, value in (position.best_weights or {}).items()})
        for index, moments in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer/{index}/{name}": value for name, value in moments.items()})
        tensors.update({f"random/{device}": state for device, state in random_states().items()})
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}

        words = {"position": position.words(), "arguments": self.arguments}
        try:
            if self.path.exists():
                with writing(self.earlier):
                    os.replace(self.path, self.earlier)
            write_tensors(self.path, tensors, {**words, "checksum": checksum(tensors, words)})
        except Unwritable as error:
            print(f"warning: progress was not saved, {error}; the training goes on", flush=True)

    def load(self, model, optimizer):
        """Put weights, moments, random state back. Returns the position; the first if nothing was found."""
        self.began = self.saved = time.perf_counter()
        if self.found is None:
            return Position()
        (position, tensors), self.found = self.found, None
        parts = {"model": {}, "best": {}, "optimizer": {}, "random": {}}
        for key, value in tensors.items():
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

    def _read(self, path):
        """(Position, tensors) of a file; None if it has other arguments, or is damaged, which is said."""
        try:
            check_file(path)
            with safetensors.safe_open(path, "pt") as file:
                words = {name: text for name, text in file.metadata().items() if name != "format"}
                names = file.keys()  # it is no dict
                tensors = {name: file.get_tensor(name) for name in names}
        except (BadInput, OSError, AttributeError, safetensors.SafetensorError):  # metadata may be None
            words, tensors = {}, {}
        if words.pop("checksum", None) != checksum(tensors, words):
            print(f"note: {path} is damaged and not used")
            return None
        if words["arguments"] != self.arguments:
            return None
        return Position(**json.loads(words["position"])), tensors


def checksum(tensors, words):
    """A checksum of {name: tensor} and {name: text}, 32 hex digits."""
    state = hashlib.blake2b(json.dumps(words, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()


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
