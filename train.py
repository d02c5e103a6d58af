"""One run, top to bottom: a task x a technique (or a chain of them) -> a run directory and its scores.

python train.py                                   the demonstration, base
python train.py --technique lowrank --rank 16
python train.py --technique distillation+pruning --data NOTEEVENTS.csv.gz --model emilyalsentzer/Bio_ClinicalBERT
"""

import copy
import math
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import compress
from cli import BadInput, run_script
from data import SPLITS, collate, fingerprint, make_batches
from fast import attention, cpu
from fast.optimizer import AdamW, clip_gradients, sparse_rows
from fast.precision import set_attention_dropout, training_precision
from files import writable_directory, write_csv
from run import checkpoint, progress
from run.arguments import OPTIMISATION, options_of, parse, refuse_no_epochs, settings
from run.cache import encoded
from run.inference import as_trained, evaluate, pick_device
from run.machine import this_machine
from run.origin import refuse_other_settings, starting_point, uses_demo_model
from run.progress import settle_progress
from run.results import spelled, write_score_files
from tasks import TASKS, demo

# --- the loop ----------------------------------------------------------------------------------------------------


def learning_rate(progress, peak, warmup):
    """Linear rise over the warm-up share, then a cosine to zero; progress in [0, 1]."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1 - warmup, 1e-9)))












def train(model, technique, task, notes, examples, pad_id, args, rate, device, progress_file):
    """Train, validating after each epoch or every --eval-steps, and leave the best validation's weights in the model.

    notes {split: Encoded}, examples: those of validation; "best" is by the task's own score. Returns (history, facts).
    """
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = AdamW(weights, lr=rate, weight_decay=args.weight_decay, fused=device.type != "mps")
    if not args.compile:  # which knows no sparse gradients
        sparse_rows(model, args.batch_size * args.accumulate * int(notes["train"].lengths.mean()))
    precision = training_precision(args.precision, device)
    autocast = torch.autocast(device.type, precision) if precision != torch.float32 else nullcontext()
    on_cpu = device.type == "cpu" and precision == torch.bfloat16
    if task.reads_first:
        attention.first_token(model)
    if on_cpu:
        attention.bf16_attention(model)
    called = torch.compile(model, dynamic=True) if args.compile else model  # one graph for batches of every length
    count = len(notes["train"].lengths)
    steps = math.ceil(math.ceil(count / args.batch_size) / args.accumulate)  # an epoch
    at = progress.read_position(progress_file) or {
        "epoch": 0, "step": 0, "loss": 0.0, "seen": 0, "history": [], "best": None, "stopped": False, "seconds": 0}  # fmt: skip
    best = progress.load_progress(progress_file, model, optimizer) if progress_file.exists() else None
    start, began, saved = time.perf_counter() - at["seconds"], time.perf_counter(), time.perf_counter()
    tokens, validating = 0, 0.0  # of this process alone
    room = 4 * args.batch_size * int(notes["train"].lengths.max()) if device.type != "cpu" else None  # what training's memory holds
    summed = torch.tensor(at["loss"], device=device)
    while at["epoch"] < args.epochs and not at["stopped"]:
        train_notes = task.fresh(notes["train"], [args.seed, at["epoch"]])
        batches = make_batches(train_notes.lengths, args.batch_size, seed=[args.seed, at["epoch"]])
        lengths = train_notes.lengths
        bar = tqdm(total=count, unit="row", desc=f"{technique.name} {at['epoch'] + 1}/{args.epochs}", leave=False, disable=None)
        bar.update(sum(map(len, batches[: at["step"] * args.accumulate])))
        while at["step"] < steps and not at["stopped"]:
            model.train()
            done = at["epoch"] * steps + at["step"]
            group = batches[at["step"] * args.accumulate :][: args.accumulate]
            for rows in group:
                batch = collate(train_notes, rows, pad_id, device)
                with autocast:
                    outputs = task.forward(called, batch)
                    loss = technique.loss(called, batch, outputs)
                (loss / len(group)).backward()
                summed += loss.detach() * len(rows)
                at["seen"] += len(rows)
                tokens += int(lengths[rows].sum())
                bar.update(len(rows))
            validates = at["step"] + 1 == steps or (args.eval_steps and (done + 1) % args.eval_steps == 0)
            saves = time.perf_counter() - saved > 60 * args.save_minutes
            if device.type == "cpu" or validates or saves or done % 50 == 0:  # a GPU is not made to wait after every step
                at["loss"] = summed.item()
                if not math.isfinite(at["loss"]):
                    raise BadInput(f"the loss is {at['loss']} at epoch {at['epoch'] + 1}, step {done + 1}; lower --lr or use fp32")
                bar.set_postfix(loss=f"{at['loss'] / at['seen']:.3f}", refresh=False)
            clip_gradients(weights, args.clip)
            for parameters in optimizer.param_groups:
                parameters["lr"] = learning_rate(done / (steps * args.epochs), rate, args.warmup)
            optimizer.step()
            optimizer.zero_grad()
            technique.after_step(model, (done + 1) / (steps * args.epochs))
            at["step"] += 1
            if validates:
                paused = time.perf_counter()
                if on_cpu:  # validation reads as the final scores do, in fp32 on a CPU
                    attention.bf16_attention(model, False)
                final = as_trained(device, {"precision": str(precision).removeprefix("torch.")})
                scores = evaluate(model, task, examples, notes["validation"], pad_id, final, tokens=room)[0].overall
                if on_cpu:
                    attention.bf16_attention(model)
                epoch = (done + 1) // steps if at["step"] == steps else round((done + 1) / steps, 3)
                row = {"Epoch": epoch, **scores, "Split": "validation", "Loss": at["loss"] / at["seen"], "Step": done + 1}
                at["history"].append(row)
                at["loss"], at["seen"], summed = 0.0, 0, torch.zeros((), device=device)
                if technique.settled((done + 1) / (steps * args.epochs)) and task.better(row, at["best"]):
                    at["best"] = row
                    best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
                since = len(at["history"]) - 1 - at["history"].index(at["best"]) if at["best"] else 0
                at["stopped"] = bool(args.patience) and since >= args.patience
                print(
                    f"{technique.name}: epoch {row['Epoch']:g}/{args.epochs}, {spelled(row, {**task.headline, 'Loss': 'loss'})}", flush=True
                )
                validating += time.perf_counter() - paused
            if saves:
                saved = time.perf_counter()
                progress.save_progress(progress_file, {**at, "seconds": saved - start}, model, best, optimizer)
        bar.close()
        at["epoch"], at["step"] = at["epoch"] + 1, 0
        progress.save_progress(progress_file, {**at, "seconds": time.perf_counter() - start}, model, best, optimizer)
    if at["stopped"]:
        print(f"{technique.name}: stopped, {args.patience} validations without a better one")
    model.load_state_dict(best)
    if on_cpu:
        attention.bf16_attention(model, False)
    took = time.perf_counter() - began - validating
    facts = {"best_epoch": at["best"]["Epoch"], "train_seconds": round(time.perf_counter() - start, 1)}
    return at["history"], {
        **facts,
        "precision": str(precision).removeprefix("torch."),
        "tokens_per_s": round(tokens / took) if tokens else None,
    }






# --- one run -----------------------------------------------------------------------------------------------------








def run(args):
    """Make the run directory args.out/args.name, unless it is finished. Returns its path."""
    out = writable_directory(args.out)
    directory = out / args.name
    if checkpoint.is_finished(directory) and not args.overwrite:
        refuse_other_settings(directory, args.technique, settings(args))
        print(f"{args.name}: finished already in {directory}; --overwrite trains it again")
        return directory
    machine = this_machine()  # now, since the checkout may move on while this code runs
    distils, trains = "distillation" in args.parts, compress.trains(args.parts, args)
    start, teacher = args.start, args.teacher if distils else None
    tiny = uses_demo_model(args, start, teacher)
    args = copy.copy(args)
    args.data_path, args.model_path = args.data, args.model
    if demonstration := tiny or args.data == "demo":
        print(demo.BANNER, flush=True)
        demo_notes, demo_model = demo.make(out / "demo", args.task)
        args.data_path = demo_notes if args.data == "demo" else args.data
        args.model_path = demo_model if args.model == "demo" else args.model
    if distils and not teacher:
        teacher = base_run(args)
    takes_out = "pruning" in args.parts and (args.structured or args.keep_layers)
    shares = "lowrank" in args.parts and args.activation_aware and args.target_macs
    learnt = takes_out or shares or ("quantization" in args.parts and args.qat)  # it works on a model that has learnt the task
    if (not trains or (learnt and not distils)) and not start:
        start = base_run(args)

    # rows -> labelled notes, split
    task = TASKS[args.task](**options_of(TASKS[args.task], args))
    splits, facts = task.load(args.data_path, args.fraction, args.validation, args.test, args.split_seed)
    facts["split"] = fingerprint(splits)
    whose = f"of {facts['subjects']} subjects, split by subject" if facts["subjects"] else "each its own subject"
    print("data:", ", ".join(f"{n} {what}" for what, n in facts["rows"].items() if n), f"-> {facts['notes']} {task.unit}, {whose}")
    for split, size in facts["sizes"].items():
        per_label = sorted(facts["splits"][split].items(), key=lambda item: -item[1] if len(facts["splits"][split]) > 12 else 0)
        more = [f"{len(per_label) - 12} labels more"] if len(per_label) > 12 else []
        print(f"  {split}: {size} {task.unit}", *(f"{count} {name}" for name, count in per_label[:12]), *more, sep=", ")

    # model and technique, token ids
    torch.manual_seed(args.seed)
    device = pick_device(args.device, args.compile)
    model, tokenizer, earlier, supplied = starting_point(args, task, facts, start, teacher, device)
    notes = {split: encoded(task, splits[split], tokenizer, args.max_length, args.cache) for split in SPLITS}
    pad_id = tokenizer.pad_token_id

    def calibration(count):
        rows = np.random.default_rng(args.seed).permutation(len(notes["train"].lengths))[:count]
        rows = rows[np.argsort(notes["train"].lengths[rows], kind="stable")]
        return [collate(notes["train"], rows[i : i + args.batch_size], pad_id, device) for i in range(0, len(rows), args.batch_size)]

    technique = compress.build(args.parts, vars(args), calibration=calibration, **supplied)
    technique.task = task
    set_attention_dropout(model, args.attention_dropout)
    rate = args.lr or (demo.LEARNING_RATE if tiny else technique.learning_rate)

    # prepare -> loop -> finish -> score; the test split only now, and once
    began = time.perf_counter()
    model = technique.prepare(model.to(device)).to(device)
    history, trained = [], {"best_epoch": 0, "train_seconds": 0.0}
    progress_file = directory.with_name(f".{directory.name}.progress.safetensors")
    if technique.trains and args.epochs:
        print(f"{args.name}: learning rate {rate}, {args.epochs} epochs, {device}", flush=True)
        settle_progress(progress_file, {**settings(args), "split": facts["split"]})
        history, trained = train(model, technique, task, notes, splits["validation"], pad_id, args, rate, device, progress_file)
    if technique.trains:
        trained["head"] = task.fit_head(model, splits["train"], notes["train"], pad_id)
    model, autocast = technique.finish(model).eval(), as_trained(device, trained)
    scores = {"validation": evaluate(model, task, splits["validation"], notes["validation"], pad_id, autocast)}
    task.calibrate(splits["validation"], scores["validation"][1])
    scores["validation"] = task.score(splits["validation"], scores["validation"][1])
    scores["test"], predictions = evaluate(model, task, splits["test"], notes["test"], pad_id, autocast, intervals=True)
    if table := task.table(scores["test"]):
        print(table)
    print(f"{args.name}: test, {len(splits['test'])} {task.unit}, {spelled(scores['test'].overall, task.headline)}", flush=True)

    def write_predictions(path):
        if header := task.header():
            rows = ([e.row_id, task.truth(e), *task.record(p)] for e, p in zip(splits["test"], predictions))
            write_csv(path / "predictions.csv", ["row_id", "label", *header], rows)

    record = {
        "technique": args.technique, "name": args.name, "demonstration": demonstration, "demo_model": tiny,
        "arguments": settings(args), "start": start and str(start),
        "teacher": teacher and str(teacher), "learning_rate": rate, "device": str(next(model.parameters()).device), "task": task.describe(),
        "data": facts, **trained, "run_seconds": round(time.perf_counter() - began, 1), "history": history,
        "validation": scores["validation"]._asdict(), "test": scores["test"]._asdict(), "machine": machine,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }  # fmt: skip
    write_score_files(out, task, record)
    checkpoint.save(directory, model, tokenizer, earlier + technique.describe(), record, technique.files(), write_predictions)
    for leftover in (progress_file, progress_file.with_suffix(".json")):
        leftover.unlink(missing_ok=True)
    return directory






def base_run(args):
    """The base run under the same --out, of the same notes and model; trained first if it is not there."""
    base = copy.copy(args)
    base.technique, base.name, base.parts, base.overwrite, base.start = "base", "base", ["base"], False, None
    directory = Path(args.out) / "base"
    if not checkpoint.is_finished(directory):
        refuse_no_epochs(base)
        return run(base)
    refuse_other_settings(directory, "base", {name: value for name, value in settings(base).items() if name not in OPTIMISATION})
    print(f"{args.name}: from the base run in {directory}")
    return directory










def main(argv=None):
    """Parse and run."""
    cpu.keep_memory()
    run(parse(argv))


if __name__ == "__main__":
    run_script(main)
