"""One run, top to bottom: a task x a technique (or a chain of them) -> a run directory and its scores.

python train.py                                   the demonstration, base
python train.py --technique lowrank --rank 16
python train.py --technique distillation+pruning --data NOTEEVENTS.csv.gz --model emilyalsentzer/Bio_ClinicalBERT
"""

import copy
import math
import os
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import checkpoint
import compress
import demo
from compress import attention, cpu
from compress.distillation import copy_of
from data import (SPLITS, BadInput, Parser, cached, collate, encoding_key, fingerprint, keyword, make_batches, number, run_script, share_or_file,
                  write_csv, writable_directory)  # fmt: skip
from predict import as_trained, pick_device, predict_rows
from tasks import TASKS

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "compressed-clinical-bert"
# arguments that do not change what is learnt
PLACES = ("out", "name", "overwrite", "technique", "parts", "device", "compile", "save_minutes", "cache", "data_path", "model_path")
# arguments in which a run may differ from the base run that it starts from or learns from
OPTIMISATION = ("start", "epochs", "batch_size", "accumulate", "lr", "warmup", "weight_decay", "clip", "precision", "seed",
                "attention_dropout", "eval_steps", "patience", "combine", "scaling_factor", "threshold")  # fmt: skip


def build_parser():
    """Every flag, with its unit and what its special value means."""
    parser = Parser(prog="train.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    # what to run
    add("--task", default="symptoms", help=f"one of: {', '.join(TASKS)} (symptoms)")
    add("--technique", default="base", help=f"one of: {', '.join(compress.TECHNIQUES)}, or a chain a+b (base)")
    add("--data", default="demo", help="the task's file, plain or .gz; demo = synthetic notes made on the spot (demo)")
    add(
        "--model",
        default="demo",
        help="checkpoint directory, hub name, or finished run of another task; demo = a tiny BERT of random weights (demo)",
    )
    add(
        "--fresh-pooler", action="store_true", help="forget the pooler of --model, as a run of mlm has none: for a fair comparison with one"
    )
    add("--start", default=None, help="start from this finished run instead of --model")
    add("--out", default=None, help="results directory (results/TASK)")
    add("--name", default=None, help="name of the run directory in it, and of its score files (the technique)")
    add("--overwrite", action="store_true", help="train again what is finished, or was made with other arguments")
    # data
    add("--fraction", type=number(float, 0, 1, low_open=True), default=1.0, help="share of the rows to read, by row id (1)")
    add("--validation", type=share_or_file, default=0.1, help="share of the notes for validation, or a file of them (0.1)")
    add("--test", type=share_or_file, default=0.2, help="share of the notes for the one final test, or a file of them (0.2)")
    add("--split-seed", type=number(int, 0, 2**63 - 1), default=42, help="seed of sampling, balancing and splitting (42)")
    add("--max-length", type=number(int, 4, 10**6), default=None, help="tokens a row, special ones included (256; mlm has --block-size)")
    add(
        "--cache",
        default=str(CACHE),
        help="owner-only directory of token ids, for the next run on the same notes; none = keep none (%(default)s)",
    )
    # optimisation
    add("--epochs", type=number(int, 0, 10**4), default=5, help="passes over the training notes (5; 0 = only fit --head logistic)")
    add("--eval-steps", type=number(int, 0, 10**9), default=0, help="steps between validations (0 = once an epoch)")
    add("--patience", type=number(int, 0, 10**6), default=0, help="stop after so many validations without a better one (0 = never)")
    add("--batch-size", type=number(int, 1, 10**5), default=16, help="notes a batch (16)")
    add("--accumulate", type=number(int, 1, 10**5), default=1, help="batches a step (1)")
    add(
        "--lr",
        type=number(float, 0, 1, low_open=True),
        default=None,
        help=f"peak learning rate (the paper's for each technique: 2e-5 to 5e-5; {demo.LEARNING_RATE} for the demo model)",
    )
    add("--warmup", type=number(float, 0, 1), default=0.0, help="share of the steps with a rising rate, then cosine to 0 (0)")
    add("--weight-decay", type=number(float, 0, 1), default=0.01, help="AdamW's weight decay (0.01)")
    add("--clip", type=number(float, 0, 10**6, low_open=True), default=1.0, help="largest norm of the gradient (1)")
    add("--attention-dropout", type=number(float, 0, 1, high_open=True), default=0.0,
        help="dropout of attention probabilities; above 0 no fused kernel serves: a step took 1.6 times as long in fp32 (0)")  # fmt: skip
    add(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="of training; auto = bf16 on CUDA and on a CPU that multiplies it, else fp32",
    )
    add("--seed", type=number(int, 0, 2**63 - 1), default=42, help="seed of the new head, dropout and the order of batches (42)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="auto = CUDA, MPS, CPU, the first there is")
    add("--compile", action="store_true", help="train through torch.compile, on CUDA; the first steps wait for it")
    add("--save-minutes", type=number(float, 0, 10**6), default=10.0, help="minutes between saves of an unfinished run (10)")
    for kind, classes in (("task", TASKS), ("technique", compress.TECHNIQUES)):
        for name, cls in classes.items():
            group = parser.add_argument_group(f"{kind} {name}") if cls.OPTIONS else None
            for flag, keywords in cls.OPTIONS.items():
                if flag not in parser._option_string_actions:  # several tasks may share a flag
                    flags = [flag, *keywords.get("also", ())]
                    words = {key: value for key, value in keywords.items() if key != "also"}
                    group.add_argument(*flags, dest=keyword(flag), **words)
    return parser


def parse(argv=None):
    """Parsed arguments, defaults that depend on others filled in."""
    args = build_parser().parse_args(argv)
    if args.task not in TASKS:
        raise BadInput(f"--task {args.task}: no such task; there are {', '.join(TASKS)}")
    args.parts = compress.parse(args.technique)
    task = TASKS[args.task]
    args.out, args.name = args.out or f"results/{args.task}", args.name or args.technique
    if args.max_length and task.length_flag != "max_length":
        raise BadInput(f"--max-length: --task {args.task} has --{task.length_flag.replace('_', '-')} instead")
    args.max_length = getattr(args, task.length_flag) or 256
    if Path(args.name).name != args.name or args.name.startswith("."):
        raise BadInput(f"--name {args.name}: give a plain name, without / and not beginning with a dot")
    refuse_no_epochs(args)
    if "pruning" in args.parts and not args.structured:
        given = {
            "keep-heads": args.keep_heads,
            "keep-neurons": args.keep_neurons,
            "target-macs": args.target_macs and "lowrank" not in args.parts,
        }
        if idle := [flag for flag, value in given.items() if value]:
            raise BadInput(f"--{idle[0]}: takes heads and neurons out, so it goes with --structured")
    return args


def refuse_no_epochs(args):
    """Raises BadInput for a run that trains, but for no epoch, and has no head to fit either."""
    task = TASKS[args.task]
    if compress.trains(args.parts, args) and not args.epochs and not task.can_fit_head(options_of(task, args)):
        raise BadInput("--epochs 0: nothing would be learnt; only --task readmission --head logistic can do without epochs")


# --- the loop ----------------------------------------------------------------------------------------------------


def learning_rate(progress, peak, warmup):
    """Linear rise over the warm-up share, then a cosine to zero; progress in [0, 1]."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1 - warmup, 1e-9)))


class AdamW(torch.optim.AdamW):
    """AdamW that, of a parameter with a sparse gradient, visits only the rows that have one.

    A batch of short notes names some hundred of an embedding table's 30,000 rows; a dense step would read and write them all,
    moments too. Rows that are absent keep value and moments until they come again ("lazy" Adam, as torch.optim.SparseAdam),
    where dense AdamW would go on moving and decaying them.
    """

    @torch.no_grad()
    def step(self):
        """One step; gradients that are sparse must be coalesced."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._step_rows(parameter, group)
                    parameter.grad = None
        super().step()

    def _step_rows(self, parameter, group):
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state["step"] += 1
        rows, gradient = parameter.grad._indices()[0], parameter.grad._values()  # (R,), (R, width)
        mean = state["exp_avg"][rows].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        step = state["step"].item()
        change = (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt_() + group["eps"])
        parameter[rows] = parameter[rows] * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * change


def sparse_rows(model, tokens):
    """Let the word embeddings have sparse gradients, where that pays: on a CPU, in a table much larger than a batch has tokens
    that no output layer shares."""  # fmt: skip
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = output is not None and output.weight is getattr(table, "weight", None)
    pays = isinstance(table, torch.nn.Embedding) and table.weight.device.type == "cpu" and table.num_embeddings > 2 * tokens
    if pays and table.weight.requires_grad and not tied:
        table.sparse = True


@torch.no_grad()
def clip_gradients(weights, limit):
    """Scale all gradients, sparse ones too, so that their norm together is at most `limit`."""
    for weight in weights:
        if weight.grad is not None and weight.grad.is_sparse:
            weight.grad = weight.grad.coalesce()
    values = [w.grad._values() if w.grad.is_sparse else w.grad for w in weights if w.grad is not None]
    scale = limit / (torch.nn.utils.get_total_norm(values) + 1e-6)
    if scale.device.type != "cpu" or scale < 1:  # a GPU is not made to wait for the comparison
        torch._foreach_mul_(values, scale.clamp(max=1))


def training_precision(precision, device):
    """torch.bfloat16 or torch.float32 for --precision on a device."""
    fast = device.type == "cuda" or (device.type == "cpu" and attention.multiplies_bf16())
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and fast) else torch.float32


def set_attention_dropout(model, probability):
    """Set, in place, the dropout of attention probabilities: of modules named SelfAttention as in BERT, MPNet and DeBERTa, and of
    those that hold it as attention_dropout, as in ModernBERT and ALBERT."""  # fmt: skip
    for key in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(model.config, key):
            setattr(model.config, key, probability)
    for module in model.modules():
        for name in ("dropout", "attention_dropout"):
            inner = getattr(module, name, None)
            if inner is None or (name == "dropout" and "SelfAttention" not in type(module).__name__):
                continue
            if isinstance(inner, torch.nn.Dropout):
                inner.p = probability
            elif name == "attention_dropout" and isinstance(inner, float):
                module.attention_dropout = probability


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
    at = checkpoint.read_position(progress_file) or {
        "epoch": 0, "step": 0, "loss": 0.0, "seen": 0, "history": [], "best": None, "stopped": False, "seconds": 0}  # fmt: skip
    best = checkpoint.load_progress(progress_file, model, optimizer) if progress_file.exists() else None
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
                scores = evaluate(model, task, examples, notes["validation"], pad_id, autocast, tokens=room)[0].overall
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
                checkpoint.save_progress(progress_file, {**at, "seconds": saved - start}, model, best, optimizer)
        bar.close()
        at["epoch"], at["step"] = at["epoch"] + 1, 0
        checkpoint.save_progress(progress_file, {**at, "seconds": time.perf_counter() - start}, model, best, optimizer)
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


def evaluate(model, task, examples, notes, pad_id, autocast=None, intervals=False, tokens=None):
    """(Scores, predictions) of a model on encoded examples; tokens: of a batch, None = what suits the device."""
    predictions = task.combine(examples, notes, predict_rows(model, task, notes, pad_id, tokens, autocast))
    return task.score(examples, predictions, intervals), predictions


def spelled(scores, names):
    """'accuracy 0.9321, macro-F1 0.8553' from a row of scores; names {score: wording}."""
    return ", ".join(f"{text} {scores[name]:.4f}" for name, text in names.items() if scores.get(name) is not None)


# --- one run -----------------------------------------------------------------------------------------------------


def options_of(cls, args):
    """The keywords of a task or a technique among the parsed arguments."""
    return {name: getattr(args, name) for name in map(keyword, cls.OPTIONS)}


def settings(args):
    """The arguments that decide what this technique learns, for run.json and to tell a finished run from another one."""
    ours = options_of(TASKS[args.task], args)
    for part in args.parts:
        ours.update(options_of(compress.TECHNIQUES[part], args))
    every = {keyword(flag) for table in (TASKS, compress.TECHNIQUES) for cls in table.values() for flag in cls.OPTIONS}
    common = {name: value for name, value in vars(args).items() if name not in every and name not in PLACES}
    return dict(sorted({**common, **ours}.items()))


def refuse_other_settings(directory, technique, wanted):
    """Raises BadInput if a finished run was made by another technique or with other settings than those wanted now."""
    record = checkpoint.read_json(directory / "run.json")
    changed = [name for name, value in wanted.items() if record["arguments"].get(name) != value]
    if record["technique"] != technique:
        changed = ["technique", *changed]
    if changed:
        raise BadInput(f"{directory}: finished with other {', '.join(changed)}; give another --out, or --overwrite")


def run(args):
    """Make the run directory args.out/args.name, unless it is finished. Returns its path."""
    out = writable_directory(args.out)
    directory = out / args.name
    if checkpoint.is_finished(directory) and not args.overwrite:
        refuse_other_settings(directory, args.technique, settings(args))
        print(f"{args.name}: finished already in {directory}; --overwrite trains it again")
        return directory
    machine = checkpoint.machine()  # now, since the checkout may move on while this code runs
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


def encoded(task, examples, tokenizer, max_length, directory):
    """The examples' rows, from the cache if they were tokenised before; a task that draws its rows anew has none to keep."""
    if directory == "none" or task.redraws or not hasattr(tokenizer, "backend_tokenizer"):  # a tokenizer in Python has no state to hash
        return task.encode(examples, tokenizer, max_length)
    key = encoding_key(tokenizer, {**task.describe(), "max_length": max_length}, examples)
    return cached(directory, key, lambda: task.encode(examples, tokenizer, max_length))


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
        adapted = checkpoint.is_finished(args.model_path) and checkpoint.read_json(Path(args.model_path) / "run.json")["arguments"]["data"]
        if adapted == args.data != "demo":
            print(f"note: --model {args.model} learnt from the texts of the same file, this run's test texts perhaps among them")
    if taught and tokenizer.get_vocab() != taught.tokenizer.get_vocab():
        raise BadInput("the student's vocabulary is not the teacher's, so they cannot read the same tokens; choose another")
    longest = min(getattr(model.config, "max_position_embeddings", None) or math.inf, tokenizer.model_max_length)
    if args.max_length > longest:
        raise BadInput(f"--{task.length_flag.replace('_', '-')} {args.max_length}: the model reads at most {longest} tokens")
    return model, tokenizer, earlier, {"teacher": taught and taught.model.to(device), "source": source, "fresh": fresh}


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


def uses_demo_model(args, start, teacher):
    """Whether the model of this run descends from the demonstration's."""
    model = args.student if teacher and args.student else args.model
    origin = start or (teacher if teacher and not args.student else model if checkpoint.is_finished(model) else None)
    return checkpoint.read_json(Path(origin) / "run.json")["demo_model"] if origin else model == "demo"


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


def settle_progress(path, arguments):
    """Keep an unfinished run's progress if it was made with these arguments, else start anew."""
    description = path.with_suffix(".json")
    if path.exists() and description.exists() and checkpoint.read_json(description) == arguments:
        position = checkpoint.read_position(path)
        print(f"resuming at epoch {position['epoch'] + 1}, step {position['step'] + 1}")
        return
    path.unlink(missing_ok=True)
    checkpoint.write_json(description, arguments)


def write_score_files(out, task, record):
    """The two CSVs of a run: overall, by epoch on validation and then on test; and per label on test, if there are labels.

    A run without epochs of its own has one validation row, of the finished model, as epoch 0.
    """
    name, epoch = record["name"], record["best_epoch"]
    rows = record["history"] or [{"Epoch": 0, **record["validation"]["overall"], "Split": "validation"}]
    rows = [*rows, {"Epoch": epoch, **record["test"]["overall"], "Split": "test"}]
    header = ["Epoch", *task.overall, "Split", "Loss", "Step"]
    write_csv(out / task.overall_csv.format(name), header, [[row.get(column) for column in header] for row in rows])
    if per_label := record["test"]["per_label"].items():
        header = ["Epoch", task.label_column, *task.per_label, "Split"]
        write_csv(
            out / task.per_label_csv.format(name), header, [[epoch, label, *map(v.get, task.per_label), "test"] for label, v in per_label]
        )


def main(argv=None):
    """Parse and run."""
    cpu.keep_memory()
    run(parse(argv))


if __name__ == "__main__":
    run_script(main)
