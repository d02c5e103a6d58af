"""What every technique is: a handful of hooks that the training loop calls, and helpers to find the layers to change."""

import torch
from torch import nn

from data import BadInput, number

# flags that several techniques share
TARGET_MACS = {"--target-macs": dict(type=number(float, 0, 1, True, True), default=None,
                                     help="share of the encoder's multiply-adds to keep (0.5 for --structured; lowrank: use --rank)")}  # fmt: skip
CALIBRATION_NOTES = {"--calibration-notes": dict(type=number(int, 1, 10**6), default=256, help="training notes to calibrate by (256)")}
LAYER_CHOICE = {"--layer-choice": dict(choices=("spaced", "best"), default="spaced",
                                       help="layers to keep: evenly spaced, or those whose absence costs most on calibration notes")}  # fmt: skip


class Technique:
    """One way to make a model cheaper. The loop calls the hooks in this order; the base technique does nothing.

    OPTIONS are its flags; the constructor takes the same names as keywords. train.py sets `task`, which has forward(model,
    batch), loss(model, batch, outputs) and categorical(logits, batch).
    """

    name = "base"
    OPTIONS = {}
    NEEDS = ()  # keywords whose value train.py supplies: a teacher, calibration notes
    learning_rate = 3e-5  # the paper's, per technique
    trains = True  # False: applied to a finished run, no epochs of its own
    task = None

    @classmethod
    def trains_with(cls, options):
        """Whether it has epochs of its own, given the parsed arguments."""
        return cls.trains

    def prepare(self, model):
        """Before training: mask, factor, shrink. Returns the model to train."""
        return model

    def loss(self, model, batch, outputs):
        """The step's loss, a scalar tensor. batch: input_ids, attention_mask (B, T), labels; outputs: the model's."""
        return self.task.loss(model, batch, outputs)

    def after_step(self, model, progress):
        """After optimizer.step(); progress in (0, 1]."""

    def settled(self, progress):
        """Whether the model has its final strength by then; only settled epochs may be kept as the best."""
        return True

    def finish(self, model):
        """After training: fold masks, quantize. Returns the model to score and save."""
        return model

    def describe(self):
        """JSON facts from which `rebuild` makes the same structure again; None if the config alone is enough."""
        return None

    def files(self):
        """What else to write into the run directory: {path: JSON value, or {name: tensor}}."""
        return {}

    @staticmethod
    def is_plain(facts):
        """Whether a run of these facts has the layers of a plain checkpoint, so that rebuild has nothing to do."""
        return True

    @staticmethod
    def rebuild(model, facts):
        """An untrained skeleton -> the structure that the saved weights load into."""
        return model


class Chain(Technique):
    """Techniques one after another through one training loop; every hook runs left to right."""

    def __init__(self, parts):
        self.parts = parts
        self.name = "+".join(part.name for part in parts)
        self.learning_rate = max(part.learning_rate for part in parts)
        self.trains = any(part.trains for part in parts)

    @property
    def task(self):
        """The task, shared by every part."""
        return self.parts[0].task

    @task.setter
    def task(self, task):
        for part in self.parts:
            part.task = task

    def prepare(self, model):
        """Prepare by each part in turn."""
        for part in self.parts:
            model = part.prepare(model)
        return model

    def loss(self, model, batch, outputs):
        """The loss of the one part that has its own, else the task's."""
        own = [part for part in self.parts if type(part).loss is not Technique.loss]
        return (own or self.parts)[0].loss(model, batch, outputs)

    def after_step(self, model, progress):
        """Every part's after_step."""
        for part in self.parts:
            part.after_step(model, progress)

    def settled(self, progress):
        """All parts settled."""
        return all(part.settled(progress) for part in self.parts)

    def finish(self, model):
        """Finish by each part in turn."""
        for part in self.parts:
            model = part.finish(model)
        return model

    def describe(self):
        """The parts' facts, in order, as a list."""
        return [{"technique": part.name, **facts} for part in self.parts if (facts := part.describe()) is not None]

    def files(self):
        """All parts' files."""
        return {path: content for part in self.parts for path, content in part.files().items()}


def find_layers(model):
    """(name, nn.ModuleList) of the encoder's stack of layers. Raises BadInput if the model has no such list."""
    depth = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise BadInput(f"cannot find the layers of {type(model).__name__}; to distil it, give a smaller model with --student")


def encoder_linears(model):
    """({name: nn.Linear} of the encoder, [names of the other Linear layers: the task's head]).

    Raises BadInput for a model that has none, such as one built of Conv1D.
    """
    body = model.base_model
    inside = {id(module) for module in body.modules()}
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    chosen = {name: module for name, module in linears.items() if id(module) in inside}
    if not chosen:
        raise BadInput(f"{type(model).__name__} has no nn.Linear in its encoder, so there is nothing to compress")
    return chosen, [name for name in linears if name not in chosen]


def replace_module(model, name, module):
    """Put a module in another's place, by dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def millions(count):
    """1234567 -> '1.2M'."""
    return f"{count / 1e6:.1f}M" if count >= 1e5 else f"{count / 1e3:.1f}k"


def device_of(model):
    """Where a model is; one without parameters, such as int8 throughout, is on the CPU."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def parameter_count(model):
    """Number of trainable and frozen parameters of an fp32 model."""
    return sum(parameter.numel() for parameter in model.parameters())
