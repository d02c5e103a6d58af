"""Where a run's model comes from: a checkpoint, a finished run, a teacher; which runs must exist first."""

import copy
import math
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import compress
from cli import BadInput
from data import text_key
from layers import set_attention_dropout, trainable_copy
from run import checkpoint
from run.arguments import OPTIMISATION, note_unused, refuse_no_epochs, settings
from run.processes import first_before_others
from run.untrusted import SPLIT, check_types, read_run
from tasks import demo


@dataclass
class Planned:
    """One run to make: its arguments, and the finished runs that it starts from and learns from."""

    args: Namespace
    start: str | None = None
    teacher: str | None = None
    asked_for: bool = True  # by the user; False: because another run needs it

    @property
    def directory(self):
        """The run directory."""
        return Path(self.args.out) / self.args.name

    @property
    def progress_path(self):
        """The file from which it goes on if it is interrupted."""
        return self.directory.with_name(f".{self.directory.name}.progress.safetensors")

    @property
    def demo_model(self):
        """Whether its model descends from the demonstration's."""
        own = compress.starts_from(self.args.parts, self.args) if self.teacher else None
        model = own or self.args.model
        origin = self.start or (self.teacher if self.teacher and not own else None)
        origin = origin or (model if checkpoint.is_finished(model) else None)
        return read_run(origin, "demo_model")["demo_model"] if origin else model == "demo"

    @property
    def demonstration(self):
        """Whether its notes or its model are the demonstration's."""
        return self.demo_model or self.args.data == "demo"

    def announce(self):
        """Say that it is a demonstration, and which of the user's flags it does not use."""
        if self.demonstration:
            print(demo.BANNER, flush=True)
        if self.asked_for:
            note_unused(self.args)

    def sources(self):
        """(path of the data, path or name of the model); the demonstration's are made if need be."""
        data, model = self.args.data, self.args.model
        if self.demonstration:
            with first_before_others():
                demo_data, demo_model = demo.make(Path(self.args.out) / "demo", self.args.task)
            data = str(demo_data) if data == "demo" else data
            model = str(demo_model) if model == "demo" else model
        return data, model

    def record(self, arguments):
        """What run.json tells of it."""
        return {
            "technique": self.args.technique,
            "name": self.args.name,
            "demonstration": self.demonstration,
            "demo_model": self.demo_model,
            "arguments": arguments,
            "start": self.start and str(self.start),
            "teacher": self.teacher and str(self.teacher),
        }


def runs_to_make(args):
    """[Planned] in the order in which they must be made; empty if the run is finished already.

    A base run comes first if this run starts from it or learns from it and it is not there.
    """
    wanted = Planned(args, args.start)
    if checkpoint.is_finished(wanted.directory) and not args.overwrite:
        refuse_other_settings(wanted.directory, args.technique, settings(args))
        print(f"{args.name}: finished already in {wanted.directory}; --overwrite trains it again")
        return []
    needs_teacher = "teacher" in compress.needs(args.parts)
    wanted.teacher = getattr(args, "teacher", None) if needs_teacher else None
    learns_from_base = needs_teacher and not wanted.teacher
    starts_from_base = compress.starts_from_base(args.parts, args) and not wanted.start
    if not learns_from_base and not starts_from_base:
        return [wanted]

    base = base_arguments(args)
    directory = Path(args.out) / base.name
    if learns_from_base:
        wanted.teacher = str(directory)
    if starts_from_base:
        wanted.start = str(directory)
    if not checkpoint.is_finished(directory):
        refuse_no_epochs(base)
        return [Planned(base, asked_for=False), wanted]
    same = {name: value for name, value in settings(base).items() if name not in OPTIMISATION}
    refuse_other_settings(directory, base.technique, same)
    print(f"{args.name}: from the base run in {directory}")
    return [wanted]


def base_arguments(args):
    """The arguments of the base run of the same notes and model, under the same --out."""
    base = copy.copy(args)
    base.technique = base.name = next(iter(compress.TECHNIQUES))
    base.parts, base.overwrite, base.start = [base.technique], False, None
    return base


def refuse_other_settings(directory, technique, wanted):
    """Raises BadInput if a finished run was made by another technique or with other settings than wanted."""
    record = read_run(directory, "arguments", "technique")
    changed = [name for name, value in wanted.items() if record["arguments"].get(name) != value]
    if record["technique"] != technique:
        changed = ["technique", *changed]
    if changed:
        raise BadInput(
            f"{directory}: finished with other {', '.join(changed)}; give another --out, or --overwrite"
        )


# --- the model to start from -------------------------------------------------------------------------


@dataclass
class Start:
    """What a run starts with: the model to prepare, its tokenizer, the compression it has already."""

    model: object
    tokenizer: object
    compression: list
    teacher: object = None
    source: str | None = None  # where the unchanged model is, None if no file holds it
    fresh: tuple = ()  # names of the tensors that the source did not have

    def supplied(self, device):
        """What techniques may need from outside, by the names in NEEDS; the teacher on a device."""
        teacher = self.teacher and self.teacher.to(device)
        return {"teacher": teacher, "source": self.source, "fresh": list(self.fresh)}


def starting_point(planned, source, task, facts, test):
    """The Start of a planned run. source: its checkpoint; test: its test examples. Raises BadInput."""
    args = planned.args
    own = compress.starts_from(args.parts, args)  # a student's checkpoint of its own
    taught = (
        finished_run(planned.teacher, "--teacher", planned, task, facts, test) if planned.teacher else None
    )
    if taught:
        refuse_teacher(planned.teacher, taught, own)
    if planned.start:
        start = from_finished(planned, task, facts, test)
    elif taught and not own:
        start = Start(trainable_copy(taught.model), taught.tokenizer, [])
    else:
        flag = "--student" if taught else "--model"
        model, tokenizer, fresh = checkpoint.from_pretrained(
            own or source, task, flag, args.fresh_pooler, None if own else args.revision
        )
        start = Start(model, tokenizer, [], source=None if taught else str(source), fresh=tuple(fresh))
        note_adapted_on(args)
    start.teacher = taught and taught.model
    if taught and start.tokenizer.get_vocab() != taught.tokenizer.get_vocab():
        raise BadInput("the student's vocabulary is not the teacher's, so they cannot read the same tokens")
    refuse_length(args, task, start)
    set_attention_dropout(start.model, args.attention_dropout)
    return start


def from_finished(planned, task, facts, test):
    """The Start of a run that goes on from a finished one, compressed or not."""
    args, directory = planned.args, planned.start
    origin = finished_run(directory, "--start", planned, task, facts, test)
    earlier = origin.compression
    if compress.final(earlier):
        what = "bf16" if earlier[-1]["technique"] == "bf16" else "int8"
        raise BadInput(
            f"--start {directory}: is {what} already, which can be neither trained nor compressed further"
        )
    if compress.trains(args.parts, args):
        earlier = [
            fact for fact in earlier if compress.changed([fact])
        ]  # training fills pruning's zeros again
    nothing = next(iter(compress.TECHNIQUES))
    compress.check_order([fact["technique"] for fact in earlier] + [p for p in args.parts if p != nothing])
    model, fresh = origin.model, []
    if origin.task.head() != task.head():
        if earlier:
            layers = earlier[0]["technique"]
            raise BadInput(
                f"--start {directory}: has another head and layers of {layers}; start from plain layers"
            )
        model, fresh = checkpoint.with_head(model, task)
    source = None if earlier else str(directory)
    return Start(model, origin.tokenizer, earlier, source=source, fresh=tuple(fresh))


def finished_run(directory, flag, planned, task, facts, test):
    """Load a run to start or learn from. Raises BadInput if it answers other labels or saw our test notes."""
    origin = checkpoint.load(directory)
    check_types(f"{directory}/run.json", origin.facts, {}, ("data.split", "data.rows", *SPLIT))
    if (origin.task.name, origin.task.labels) != (task.name, task.labels):
        theirs, ours = ", ".join(origin.task.labels), ", ".join(task.labels)
        raise BadInput(f"{flag} {directory}: answers {theirs}; this run has {ours}")
    if flag == "--teacher" and origin.task.head() != task.head():
        raise BadInput(
            f"{flag} {directory}: its head is another one than this run's; "
            "train a base run with the same head"
        )
    if origin.facts["data"]["split"] == facts["split"]:
        return origin
    if (
        origin.facts["arguments"]["data"] == planned.args.data
        or origin.facts["data"]["rows"] == facts["rows"]
    ):
        refuse_seen(directory, flag, origin, planned, test)
    else:
        print(
            f"note: {flag} {directory} was trained on other notes; "
            "make sure that this run's test notes were not among them"
        )
    return origin


def refuse_seen(directory, flag, origin, planned, test):
    """Raises BadInput if a run split the same notes otherwise and so saw notes that are test notes now."""
    data, _ = planned.sources()
    where = (origin.facts["arguments"][key] for key in ("fraction", "validation", "test", "split_seed"))
    again = type(origin.task).from_facts(origin.facts["task"])
    examples, _ = again.load(data, *where)
    seen = {text_key(note) for split in ("train", "validation") for note in examples[split]}
    shared = sum(text_key(note) in seen for note in test)
    if shared:
        raise BadInput(
            f"{flag} {directory}: was trained on another split of these notes, "
            f"so it saw {shared} of this run's {len(test)} test notes"
        )


def refuse_teacher(directory, taught, own):
    """Raises BadInput for a teacher that no student can be cut from, or that cannot answer in training."""
    thin = compress.changed(taught.compression)
    if compress.final(taught.compression) or (thin and not own):
        technique = taught.facts["technique"]
        raise BadInput(
            f"--teacher {directory}: is {technique}, its layers make no plain student; give another"
        )


def refuse_length(args, task, start):
    """Raises BadInput if rows would be longer than the model reads."""
    positions = getattr(start.model.config, "max_position_embeddings", None) or math.inf
    longest = min(positions, start.tokenizer.model_max_length)
    if args.max_length > longest:
        flag = task.length_flag.replace("_", "-")
        raise BadInput(f"--{flag} {args.max_length}: the model reads at most {longest} tokens")


def note_adapted_on(args):
    """Say so if --model is a run that read the texts of the same file."""
    if not checkpoint.is_finished(args.model):
        return
    adapted = read_run(args.model, "arguments.data")["arguments"]["data"]
    if adapted == args.data != "demo":
        print(
            f"note: --model {args.model} learnt from the texts of the same file, perhaps the test texts too"
        )
