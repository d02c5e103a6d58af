"""What every technique is: a handful of hooks that the training loop calls, and helpers to find the layers to change."""


from cli import number

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
    cpu_only = False  # True: its layers run on a CPU alone
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












