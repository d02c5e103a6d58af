"""One run: a task x a technique (or a chain of them) -> a run directory and its scores.

Below: `train` is the loop, `run` the recipe around it; begin with `run`.

python train.py                                   the demonstration, base
python train.py --technique lowrank --rank 16
python train.py --technique distillation+pruning --data notes.csv --model emilyalsentzer/Bio_ClinicalBERT
"""

import math
import time
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

import compress
from cli import BadInput, run_script
from data import collate, fingerprint
from fast import cpu, speedups
from fast.optimizer import LazyAdamW, clip_gradients
from fast.precision import autocast, reading_precision, training_precision
from files import locked, remove_remains_of, writable_directory
from layers import device_of, trainable
from metrics import undefined_note
from run import checkpoint, processes, recipe
from run.arguments import options_of, parse_arguments, settings
from run.card import write_run_files
from run.inference import Notes, evaluate, pick_device, reading
from run.machine import same_bits, this_machine
from run.origin import Planned, runs_to_make, starting_point
from run.progress import LossMeter, ProgressFile, TrainingClock
from run.results import print_data, spelled, write_score_files
from run.schedule import Schedule
from run.seen import training_keys
from tasks import TASKS, demo
from tasks.groups import group_scores


def train(model, technique, notes, schedule, device, progress_file):
    """Train, validate on the way, and leave the best validation's weights in the model.

    notes: run.inference.Notes; progress_file: run.progress.ProgressFile. Returns (history, facts).
    """
    task, weights = notes.task, trainable(model)
    optimizer = LazyAdamW(
        weights, lr=schedule.rate, weight_decay=schedule.weight_decay, fused=device.type != "mps"
    )
    position = progress_file.load(model, optimizer)
    meter, clock = LossMeter(position, device), TrainingClock()
    precision = training_precision(schedule.precision, device)
    forward_model = torch.compile(model, dynamic=True) if schedule.compile else model

    def loss_of(batch):
        with autocast(device, precision):
            outputs = task.forward(forward_model, batch)
            return technique.loss(forward_model, batch, outputs)  # scalar

    with training_speedups(model, technique, notes, schedule, device, precision):
        shared_loss = processes.averaging(model, loss_of)  # in one process the same function
        while position.epoch < schedule.epochs and not position.stopped:
            rows = task.fresh(notes.rows["train"], [schedule.seed, position.epoch])
            bar = epoch_bar(technique, schedule, position)
            for batches in schedule.epoch_steps(rows.lengths, position):
                # forward and backward, several batches per step
                model.train()
                for numbers in batches:
                    batch = collate(rows, numbers, notes.pad_id, device)  # input_ids, attention_mask (B, T)
                    with processes.exchanging(shared_loss, last=numbers is batches[-1]):
                        loss = shared_loss(batch)
                    (loss / len(batches)).backward()
                    meter.add(loss, len(numbers))
                    clock.read(rows.lengths[numbers])
                    bar.update(len(numbers))

                # one optimizer step at the schedule's rate; after it, the share done counts this step
                clip_gradients(weights, schedule.clip)
                for group in optimizer.param_groups:
                    group["lr"] = schedule.learning_rate(position)
                optimizer.step()
                optimizer.zero_grad()
                position.step += 1
                technique.after_step(model, schedule.share(position))

                validates, saves = schedule.validates(position), progress_file.due()

                # look at the loss; a GPU is not made to wait for that after every step
                if device.type == "cpu" or validates or saves or position.step % 50 == 0:
                    check_loss(meter, position, schedule, bar)

                # validate at the end of an epoch, or every --eval-steps; keep the best weights
                if validates:
                    with clock.paused():
                        validate(model, technique, notes, schedule, position, meter, precision)

                # save now and then, so that an interrupted run goes on from here
                if saves:
                    progress_file.save(position, model, optimizer)
                if position.stopped:
                    break
            bar.close()
            position.next_epoch()
            progress_file.save(position, model, optimizer)

    if position.stopped:
        print(f"{technique.name}: stopped, {schedule.patience} validations without a better one")
    model.load_state_dict(position.best_weights)
    return position.history, {
        "best_epoch": position.best["Epoch"],
        "train_seconds": round(position.seconds, 1),
        "precision": str(precision).removeprefix("torch."),
        "tokens_per_s": clock.tokens_per_s(),
    }


@contextmanager
def training_speedups(model, technique, notes, schedule, device, precision):
    """What makes a step faster, on the model and on what else reads the batches: a teacher."""
    first, lengths = notes.task.reads_first, notes.rows["train"].lengths
    tokens = None if schedule.compile else schedule.batch_size * schedule.accumulate * int(lengths.mean())
    bf16 = "bf16_products" if device.type == "cpu" and precision == torch.bfloat16 else None
    with ExitStack() as patches:
        for reader in [model, *technique.readers()]:
            patches.enter_context(processes.dealt_out(reader))
        for other in technique.readers():
            patches.enter_context(speedups(other, first))
        patches.enter_context(speedups(model, first, bf16_attention=bf16, tokens_per_step=tokens))
        yield


def epoch_bar(technique, schedule, position):
    """A bar over the notes of an epoch, with those of an interrupted one done."""
    name = f"{technique.name} {position.epoch + 1}/{schedule.epochs}"
    done = min(schedule.notes, position.step * schedule.accumulate * schedule.batch_size)
    return tqdm(total=schedule.notes, initial=done, unit="row", desc=name, leave=False, disable=None)


def check_loss(meter, position, schedule, bar):
    """Show the mean training loss. Raises BadInput if it is no number any more."""
    loss = meter.read(position)
    if not math.isfinite(loss):
        where = f"epoch {position.epoch + 1}, step {schedule.step_of(position)}"
        raise BadInput(f"the loss is {loss} at {where}; lower --lr or use --precision fp32")
    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)


def validate(model, technique, notes, schedule, position, meter, precision):
    """Score the validation notes as the test notes will be; keep the best weights; stop by --patience."""
    task, device = notes.task, device_of(model)
    # without gradients a batch takes less than a quarter of training's memory
    training_room = 4 * schedule.batch_size * int(notes.rows["train"].lengths.max())
    scores, _ = evaluate(
        model,
        notes,
        "validation",
        reading_precision(device, precision, task.fits_head),
        tokens=None if device.type == "cpu" else training_room,
    )
    row = {
        "Epoch": schedule.epoch_label(position),
        **scores.overall,
        "Split": "validation",
        "TrainingLoss": meter.read(position),
        "Step": schedule.step_of(position),
    }
    row = processes.agreed(row)
    meter.reset(position)
    position.history.append(row)
    if technique.settled(schedule.share(position)) and task.better(row, position.best):
        position.keep(row, model)
    position.stopped = bool(schedule.patience) and position.since_best >= schedule.patience
    words = spelled(row, {**task.headline, "Loss": "loss", "TrainingLoss": "training loss"})
    print(f"{technique.name}: epoch {row['Epoch']:g}/{schedule.epochs}, {words}", flush=True)


# --- one run -----------------------------------------------------------------------------------------


def run_all(args):
    """Make the run directory args.out/args.name, and before it the runs that it needs. Returns its path."""
    same_bits(args.deterministic)
    writable_directory(args.out)
    planned_runs, wanted = runs_to_make(args), Planned(args)
    processes.wait_for_all()
    for planned in planned_runs:
        with locked(planned.directory) if processes.is_first() else nullcontext():
            run(planned)
        processes.wait_for_all()
    if processes.is_first():
        with locked(wanted.directory):  # a process that was killed at its very end may have left something
            remove_remains_of(wanted.directory)
            ProgressFile(wanted.progress_path, args.save_minutes).remove()
    return wanted.directory


def run(planned):
    """One run: notes -> model -> technique -> loop -> scores -> a run directory, written whole."""
    args, machine, began = planned.args, this_machine(), time.perf_counter()
    planned.announce()
    data, source = planned.sources()

    # rows -> labelled notes, split by subject
    task = TASKS[args.task](**options_of(TASKS[args.task], args))
    examples, facts = task.load(data, args.fraction, args.validation, args.test, args.split_seed)
    facts["split"] = fingerprint(examples)
    print_data(task, facts)

    # the model to start from (test texts only to refuse a --start that saw them), token ids, technique
    torch.manual_seed(args.seed)
    device = pick_device(args.device, args.compile)
    start = starting_point(planned, source, task, facts, examples["test"])
    notes = Notes.read(task, examples, start.tokenizer, args.max_length, args.cache)
    supplied = start.supplied(device) | {"calibration": notes.calibration(device, args.batch_size, args.seed)}
    technique = compress.build(args.parts, vars(args), **supplied)
    technique.task = task

    # prepare -> loop -> finish
    model = processes.same_weights(technique.prepare(start.model.to(device)).to(device))
    rate = args.lr or (demo.LEARNING_RATE if planned.demo_model else technique.learning_rate)
    progress_file = ProgressFile(planned.progress_path, args.save_minutes)
    history, trained = [], {"best_epoch": 0, "train_seconds": 0.0}
    if technique.trains and args.epochs:
        print(f"{args.name}: learning rate {rate}, {args.epochs} epochs, {device}", flush=True)
        progress_file.settle({**settings(args), "split": facts["split"]})
        schedule = Schedule.of(args, len(notes.rows["train"].lengths), rate)
        history, trained = train(model, technique, notes, schedule, device, progress_file)
    model = technique.finish(model).eval()
    with reading(
        model, task
    ):  # a logistic head is fitted on what the finished model gives: int8 gives others
        trained["head"] = task.fit_head(model, examples["train"], notes.rows["train"], notes.pad_id)

    # score; the test notes only now, and once
    precision = getattr(torch, trained.get("precision", "float32"))
    precision = reading_precision(device_of(model), precision, task.fits_head)
    validation, test, groups, predictions = score_run(model, notes, precision, args.name)

    # save, whole
    record = {
        **planned.record(settings(args)), "learning_rate": rate, "device": str(device_of(model)),
        "task": task.describe(), "data": facts, **trained,
        "run_seconds": round(time.perf_counter() - began, 1), "machine": machine, "history": history,
        "validation": validation._asdict(), "test": test._asdict(), "groups": groups,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }  # fmt: skip
    if not processes.is_first():
        return
    write_score_files(Path(args.out), task, record)
    compression = start.compression + technique.describe()
    keys = training_keys(examples, facts["split"], args.seed)
    checkpoint.save(
        planned.directory, model, start.tokenizer, task, compression, record, {**technique.files(), **keys},
        lambda path, record: write_run_files(path, task, record, examples["test"], predictions),
    )  # fmt: skip
    progress_file.remove()


def score_run(model, notes, precision, name):
    """(validation Scores, test Scores with intervals, of test groups too, test predictions); prints them."""
    task, examples = notes.task, notes.examples
    validation, predictions = evaluate(model, notes, "validation", precision)
    task.calibrate(examples["validation"], predictions)  # may choose thresholds, so score again
    final = task.score(examples["validation"], predictions)
    validation = final._replace(overall={**final.overall, "Loss": validation.overall["Loss"]})

    test, predictions = evaluate(model, notes, "test", precision, final=True)
    if table := task.table(test):
        print(table)
    if note := undefined_note(test, task.unit):
        print(note)
    print(
        f"{name}: test, {len(examples['test'])} {task.unit}, {spelled(test.overall, task.headline)}",
        flush=True,
    )
    groups = group_scores(task, examples["test"], predictions, f"test {task.unit}")
    return validation, test, groups, predictions


def main(argv=None):
    """Parse and run."""
    cpu.keep_memory()
    args = parse_arguments(argv)
    with processes.joined(args.device):
        return recipe.follow_recipe(args) if args.recipe else run_all(args)


if __name__ == "__main__":
    run_script(main)
