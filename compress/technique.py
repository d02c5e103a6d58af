"""What every technique is: a few hooks that the training loop calls, and a few questions asked before it."""

from cli import number

# Flags that several techniques share
TARGET_MACS = {
    "--target-macs": {
        "type": number(float, 0, 1, True, True),
        "default": None,
        "help": "share of the encoder's multiply-adds to keep, above 0 and below 1 "
        "(pruning --structured: 0.5; lowrank: none, --rank decides)",
    }
}
CALIBRATION_NOTES = {
    "--calibration-notes": {
        "type": number(int, 1, 10**6),
        "default": 256,
        "help": "number of training notes used for calibration (256)",
    }
}
LAYER_CHOICE = {
    "--layer-choice": {
        "choices": ("spaced", "best"),
        "default": "spaced",
        "help": "which layers to keep: evenly spaced ones, or the best ones, whose removal would raise "
        "the loss on the calibration notes most (spaced)",
    }
}


class Technique:
    """One way to make a model cheaper. The base technique changes nothing.

    OPTIONS are its flags, {"--flag": argparse's keywords}; the constructor takes the same names as keywords.
    NEEDS names what else the constructor takes, and train.py supplies:
        teacher      the model of a finished run; the model to train is its copy, or what starts_from names
        calibration  a function: calibration(notes) -> batches of that many training notes
        source       name of the unchanged model, None if no file holds it
        fresh        names of the tensors that the checkpoint did not have
    train.py also sets `task`, which has forward(model, batch), loss(model, batch, outputs) and
    categorical(logits, batch).
    """

    name = "base"  # `build` sets it: the technique's key in TECHNIQUES
    OPTIONS = {}
    NEEDS = ()
    learning_rate = 3e-5  # the paper's, per technique
    trains = True  # False: applied to a finished run, no epochs of its own
    cpu_only = False  # True: its layers run on the CPU alone
    final = False  # True: its run can be neither trained nor compressed further
    excludes = ()  # classes of techniques that it cannot be chained with ...
    excludes_because = "cannot be chained with {}"  # ... and why
    task = None

    # --- asked before anything is loaded; options: the parsed arguments, a Namespace

    @classmethod
    def trains_with(cls, options):
        """Whether it has epochs of its own with these options."""
        return cls.trains

    @classmethod
    def starts_from_base(cls, options):
        """Whether it works on a model that has learnt the task: the base run, or what --start names."""
        return False

    @classmethod
    def starts_from(cls, options):
        """Another checkpoint to start from than --model; by default None, there is no other."""

    @classmethod
    def check(cls, options, chain):
        """Raises BadInput for flags that do not go together; chain: the classes of the run's techniques."""

    # --- called by the loop, in this order

    def prepare(self, model):
        """Before training: mask, factor, shrink. Returns the model to train."""
        return model

    def loss(self, model, batch, outputs):
        """The step's loss, a scalar. batch: input_ids, attention_mask (B, T), labels; outputs have logits."""
        return self.task.loss(model, batch, outputs)

    def readers(self):
        """Other models that read the batches in training, such as a teacher."""
        return []

    def after_step(self, model, progress):
        """After optimizer.step(); progress in (0, 1]."""

    def settled(self, progress):
        """Whether the model is fully compressed by then; only settled epochs may be kept as the best."""
        return True

    def finish(self, model):
        """After training: fold masks, merge, quantize. Returns the model to score and save."""
        return model

    def describe(self):
        """JSON facts from which `rebuild` makes the same structure; by default None, the config is enough."""

    def files(self):
        """What else to write into the run directory: {path: JSON value, or {name: tensor}}."""
        return {}

    # --- asked of a finished run; facts: what `describe` gave

    @staticmethod
    def is_plain(facts):
        """Whether the run has the layers of a plain checkpoint, so that rebuild has nothing to do."""
        return True

    @staticmethod
    def rebuild(model, facts):
        """An untrained model of the run's config -> the structure that the saved weights load into."""
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

    def readers(self):
        """All parts' other models."""
        return [model for part in self.parts for model in part.readers()]

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
        described = [(part.name, part.describe()) for part in self.parts]
        return [{"technique": name, **facts} for name, facts in described if facts is not None]

    def files(self):
        """All parts' files."""
        return {path: content for part in self.parts for path, content in part.files().items()}
