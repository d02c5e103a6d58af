"""Where a run's model comes from: a checkpoint, a finished run, a teacher."""

import math
from pathlib import Path

import compress
import files
from cli import BadInput
from compress.distillation import copy_of
from run import checkpoint


def starting_point(args, task, facts, start, teacher, device):
    """(model to prepare, tokenizer, compression facts it already has, {what techniques need from outside})."""
    taught = started_from(teacher, "--teacher", task, facts, args.data) if teacher else None
    thin = compress.changed(taught.compression) if taught else []
    if "quantization" in thin or (thin and not args.student):
        raise BadInput(f"--teacher {teacher}: is {taught.facts['technique']}, its layers make no plain student; give another")
    earlier, source, fresh = [], None, []
    if start:
        origin = started_from(start, "--start", task, facts, args.data)
        model, tokenizer, earlier = origin.model, origin.tokenizer, origin.compression
        if any(fact["technique"] == "quantization" for fact in earlier):
            raise BadInput(f"--start {start}: is int8 already, which can be neither trained nor compressed further")
        if compress.trains(args.parts, args):
            earlier = [fact for fact in earlier if compress.changed([fact])]  # training fills pruning's zeros again
        compress.check_order([fact["technique"] for fact in earlier] + [part for part in args.parts if part != "base"])
        if origin.task.head() != task.head():
            if earlier:
                raise BadInput(
                    f"--start {start}: has another head and layers of {earlier[0]['technique']}; start from one whose layers are plain"
                )
            model, fresh = checkpoint.with_head(model, task)
        source = None if earlier else str(start)
    elif taught and not args.student:
        model, tokenizer = copy_of(taught.model), taught.tokenizer
    else:
        source = str(args.student if taught else args.model_path)
        model, tokenizer, fresh = checkpoint.from_pretrained(source, task, "--student" if taught else "--model", args.fresh_pooler)
        source = None if taught else source
        adapted = checkpoint.is_finished(args.model_path) and files.read_json(Path(args.model_path) / "run.json")["arguments"]["data"]
        if adapted == args.data != "demo":
            print(f"note: --model {args.model} learnt from the texts of the same file, this run's test texts perhaps among them")
    if taught and tokenizer.get_vocab() != taught.tokenizer.get_vocab():
        raise BadInput("the student's vocabulary is not the teacher's, so they cannot read the same tokens; choose another")
    longest = min(getattr(model.config, "max_position_embeddings", None) or math.inf, tokenizer.model_max_length)
    if args.max_length > longest:
        raise BadInput(f"--{task.length_flag.replace('_', '-')} {args.max_length}: the model reads at most {longest} tokens")
    return model, tokenizer, earlier, {"teacher": taught and taught.model.to(device), "source": source, "fresh": fresh}


def uses_demo_model(args, start, teacher):
    """Whether the model of this run descends from the demonstration's."""
    model = args.student if teacher and args.student else args.model
    origin = start or (teacher if teacher and not args.student else model if checkpoint.is_finished(model) else None)
    return files.read_json(Path(origin) / "run.json")["demo_model"] if origin else model == "demo"


def started_from(directory, flag, task, facts, data):
    """Load a run to start from or to learn from. Raises BadInput if it answers other labels or saw our test notes."""
    origin = checkpoint.load(directory)
    if (origin.task.name, origin.task.labels) != (task.name, task.labels):
        raise BadInput(f"{flag} {directory}: answers {', '.join(origin.task.labels)}; this run has {', '.join(task.labels)}")
    if flag == "--teacher" and origin.task.head() != task.head():
        raise BadInput(f"{flag} {directory}: its head is another one than this run's; train a base run with the same head")
    if origin.facts["data"]["split"] != facts["split"]:
        if origin.facts["arguments"]["data"] == data or origin.facts["data"]["rows"] == facts["rows"]:
            raise BadInput(f"{flag} {directory}: was trained on another split of these notes, so it saw test notes of this one")
        print(f"note: {flag} {directory} was trained on other notes; make sure that this run's test notes were not among them")
    return origin


def refuse_other_settings(directory, technique, wanted):
    """Raises BadInput if a finished run was made by another technique or with other settings than those wanted now."""
    record = files.read_json(directory / "run.json")
    changed = [name for name, value in wanted.items() if record["arguments"].get(name) != value]
    if record["technique"] != technique:
        changed = ["technique", *changed]
    if changed:
        raise BadInput(f"{directory}: finished with other {', '.join(changed)}; give another --out, or --overwrite")
