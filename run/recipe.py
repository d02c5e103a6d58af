"""What the authors' code does, with its faults, to be compared with what they published: --recipe paper.

Labels        the first of the 40 symptoms that a note names, in an order drawn by --label-seed (theirs is
              that of a `set` and changes from process to process); of these the --top-k most frequent (5)
Notes         rows as they come, copies of a note among them (the authors took a tenth of their file at
              random; --fraction 0.1 does, by row id); each class down-sampled to the smallest; 90/10 at
              random (both with --split-seed 42); no validation notes
Training      padded to 256 tokens, batch 16, 5 epochs, fp32, AdamW with its default weight decay, cosine to
              zero, no warm-up, no clipping, dropout as transformers has it
Scores        of the test notes after each epoch; the last epoch counts

base          3e-5
pruning       2e-5; masks on the 30% smallest weights of every Linear, left on
lowrank       5e-5; svd_lowrank(q=32) of the classifier, which has no more rows than labels, multiplied back:
              the same weights up to rounding
distillation  5e-5; T 4, alpha 0.5; the teacher is the pre-trained model under a head that has learnt nothing,
              the student the same model
quantization  2e-5; torch.ao's quantization-aware training with its fbgemm configuration (weights int8 per
              channel, moving-average ranges of inputs), scored as the fp32 model that imitates int8; the
              ranges go on moving while the test notes are read, as torch.ao leaves it

Written from a description of the authors' notebook, not from its code. Where that is silent (which function
draws, where the loss has T^2) the usual one is taken: scikit-learn's, Hinton's. Only train.py imports from
here; the techniques, done properly, are in compress/.
"""

import copy
import math
import random
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from cli import BadInput
from compress.distillation import kd_loss
from compress.quantization import without_deprecations
from data import sampled, text_key
from files import locked, whole_directory, write_csv, write_json
from metrics import single_label
from run import checkpoint, processes
from run.arguments import RECIPE_FLAGS, options_of
from run.card import CardText, write_card
from run.inference import pick_device
from run.machine import this_machine
from run.origin import Planned, Start, refuse_length, refuse_other_settings
from run.results import print_data, shown, spelled, write_score_files
from tasks import demo
from tasks.symptoms import LEXICON, Symptoms, first_match

RATES = {"base": 3e-5, "pruning": 2e-5, "lowrank": 5e-5, "distillation": 5e-5, "quantization": 2e-5}
NAMES = ("train", "test")


# --- notes -------------------------------------------------------------------------------------------


def label_order(seed):
    """The 40 symptoms in an order drawn by a seed."""
    return random.Random(seed).sample(LEXICON, len(LEXICON))


def labelled(task, path, order, chosen):
    """(notes labelled by the first match in an order, counts of rows); chosen(row id): whether it is read."""
    counts = Counter({"rows": 0, "without text": 0, "without label": 0})
    table, notes = task.open_table(path), []
    for place, row_id, subject, text, _ in task.rows(table, counts):
        if not chosen(row_id):
            counts["not sampled"] += 1
            continue
        text = task.prepare_text(text)
        if (label := first_match(text, order)) is None:
            counts["without label"] += 1
        else:
            notes.append(task.note(table, place, row_id, subject, text, order[label]))
    return notes, counts


def balanced_split(path, notes, labels, seed):
    """{"train": notes, "test": notes}: as many of each label as the rarest has, then 90/10 at random."""
    from sklearn.model_selection import train_test_split
    from sklearn.utils import resample

    classes = [[note for note in notes if note.label == label] for label in labels]
    size = min(map(len, classes), default=0)
    if len(labels) < 2 or size * len(labels) < 2:
        raise BadInput(f"{path}: too few labelled notes for a training and a test split; give more rows")
    state = seed % 2**32  # what NumPy takes
    kept = [resample(same, replace=False, n_samples=size, random_state=state) for same in classes]
    return dict(zip(NAMES, train_test_split(sum(kept, []), test_size=0.1, random_state=state), strict=True))


def read_notes(args, path):
    """(task, {split: notes}, facts of them)."""
    task = Symptoms(**{**options_of(Symptoms, args), "top_k": args.top_k or 5, "balance": True})
    order = label_order(args.label_seed)
    notes, counts = labelled(
        task, path, order, lambda row_id: sampled(row_id, args.fraction, args.split_seed)
    )
    frequent = Counter(note.label for note in notes).most_common(task.options.top_k)
    task.labels = [label for label, _ in frequent]
    counts["of a rarer label"] = sum(note.label not in task.labels for note in notes)
    splits = balanced_split(path, notes, task.labels, args.split_seed)
    found = sum(splits.values(), [])
    for note in found:
        note.label = task.labels.index(note.label)
    counts["removed by balancing"] = len(notes) - counts["of a rarer label"] - len(found)

    train_texts = set(map(text_key, splits["train"]))
    copied = sum(text_key(note) in train_texts for note in splits["test"])
    print(f"recipe: {copied} of {len(splits['test'])} test notes are copies of training notes")
    return task, splits, {
        "rows": dict(counts), "unit": task.unit, "notes": len(found), "subjects": None, "order": order,
        "distinct": len(set(map(text_key, found))), "copied": copied,
        "sizes": {name: len(splits[name]) for name in NAMES},
        "splits": {name: task.tally(splits[name]) for name in NAMES},
    }  # fmt: skip


def encode_padded(task, notes, tokenizer, length, device):
    """(input_ids (N, length), attention_mask (N, length), labels (N,)) on a device."""
    texts = list(task.texts(notes))
    ids = tokenizer(texts, truncation=True, padding="max_length", max_length=length, return_tensors="pt")
    labels = torch.tensor([note.label for note in notes])
    return tuple(t.to(device) for t in (ids["input_ids"], ids["attention_mask"], labels))


# --- the five ----------------------------------------------------------------------------------------


def mask_weights(model):
    """Put, in place, masks on the 30% smallest weights of each Linear."""
    for module in [module for module in model.modules() if isinstance(module, nn.Linear)]:
        prune.l1_unstructured(module, "weight", amount=0.3)


@torch.no_grad()
def change_nothing(model):
    """Take the classifier's matrix apart at rank 32, which is more than it has, and multiply it back."""
    u, s, v = torch.svd_lowrank(model.classifier.weight, q=32)
    model.classifier.weight.copy_(u @ torch.diag(s) @ v.T)


@without_deprecations()
def imitate_int8(model):
    """Let, in place, every product round as fbgemm's int8 would, in training and in scoring."""
    warnings.filterwarnings("ignore", message=".*reduce_range will be deprecated")
    model.train().qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    torch.ao.quantization.prepare_qat(model, inplace=True)


PREPARE = {"pruning": mask_weights, "lowrank": change_nothing, "quantization": imitate_int8}


def untrained_teacher(model):
    """The same encoder under another head that has learnt nothing."""
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    nn.init.normal_(teacher.classifier.weight, std=model.config.initializer_range)
    return teacher


def loss_of(model, teacher, ids, mask, labels):
    """Cross-entropy, and with a teacher half of it and half of kd_loss at temperature 4."""
    logits = model(input_ids=ids, attention_mask=mask).logits  # (B, C)
    loss = F.cross_entropy(logits, labels)
    if teacher:
        with torch.no_grad():
            answers = teacher(input_ids=ids, attention_mask=mask).logits
        loss = 0.5 * loss + 0.5 * kd_loss(logits, answers, 4.0)
    return loss


# --- the loop ----------------------------------------------------------------------------------------


def train_and_score(model, teacher, rows, args, rate, names):
    """Train; score the test notes after each epoch. Returns (history, last Scores, last probabilities)."""
    notes = len(rows["train"][2])
    steps = args.epochs * math.ceil(notes / args.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
    )
    history = []
    for epoch in range(1, args.epochs + 1):
        model.train()
        total = 0.0
        for numbers in torch.randperm(notes).split(args.batch_size):
            loss = loss_of(model, teacher, *(t[numbers.to(t.device)] for t in rows["train"]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(numbers)  # on a GPU nothing waits for it
        if not math.isfinite(total := float(total) / notes):
            raise BadInput(f"the loss is {total} in epoch {epoch}; lower --lr")
        scores, probabilities = score(model, rows["test"], args.batch_size, names)
        history.append({"Epoch": epoch, **scores.overall, "Split": "test", "TrainingLoss": total})
        words = {"Accuracy": "accuracy", "F1": "macro-F1", "AUROC": "AUROC"}
        print(
            f"{args.technique}: epoch {epoch}/{args.epochs}, test {spelled(history[-1], words)}", flush=True
        )
    return history, scores, probabilities


@torch.no_grad()
def score(model, rows, batch_size, names):
    """(Scores of the test notes, probabilities (N, C))."""
    model.eval()
    batches = zip(*(t.split(batch_size) for t in rows), strict=True)
    logits = torch.cat([model(input_ids=ids, attention_mask=mask).logits for ids, mask, _ in batches]).float()
    probabilities = logits.softmax(-1).cpu().numpy()
    scores = single_label(rows[2].cpu().numpy(), probabilities, names)
    loss = float(F.cross_entropy(logits, rows[2]))
    return scores._replace(overall={**scores.overall, "Loss": loss}), probabilities


# --- one run -----------------------------------------------------------------------------------------


def directory_of(args):
    """Where the runs of a seed go: beside the proper runs, out of the way of what looks for those."""
    return Path(args.out) / "recipe" / f"seed-{args.seed}"


def follow_recipe(args):
    """Make one run of the recipe, unless it is finished. Returns its directory."""
    if processes.world()[1] > 1:
        raise BadInput(f"--recipe {args.recipe}: runs in one process; start it without torchrun")
    directory = directory_of(args) / args.technique
    settings = {name: getattr(args, name) for name in RECIPE_FLAGS}
    if checkpoint.is_finished(directory) and not args.overwrite:
        refuse_other_settings(directory, args.technique, settings)
        print(f"{args.technique}: finished already in {directory}; --overwrite trains it again")
        return directory
    planned, began = Planned(args), time.perf_counter()
    planned.announce()
    print("recipe: what the authors' code does, test notes and all; not how a model should be chosen")
    data, source = planned.sources()
    task, splits, facts = read_notes(args, data)
    print_data(task, facts, "split by note, copies and all")

    torch.manual_seed(args.seed)
    device = pick_device(args.device)
    model, tokenizer, _ = checkpoint.from_pretrained(source, task, revision=args.revision)
    rows = {name: encode_padded(task, splits[name], tokenizer, args.max_length, device) for name in NAMES}
    refuse_length(args, task, Start(model, tokenizer, []))
    if not isinstance(getattr(model, "classifier", None), nn.Linear):
        raise BadInput(f"--recipe paper: is for BERT; {type(model).__name__} has another head")
    teacher = untrained_teacher(model).to(device) if args.technique == "distillation" else None
    if args.technique in PREPARE:
        PREPARE[args.technique](model)
    model.to(device)
    rate = args.lr or (demo.LEARNING_RATE if planned.demo_model else RATES[args.technique])
    history, scores, probabilities = train_and_score(model, teacher, rows, args, rate, task.labels)

    scores = scores._replace(intervals=task.intervals(scores.overall, splits["test"], probabilities))

    record = {
        "recipe": args.recipe, **planned.record(settings), "learning_rate": rate, "device": str(device),
        "task": task.describe(), "data": facts, "best_epoch": args.epochs, "history": history,
        "test": scores._asdict(), "run_seconds": round(time.perf_counter() - began, 1),
        "machine": this_machine(), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }  # fmt: skip
    with locked(directory), whole_directory(directory) as path:
        write_score_files(directory.parent, task, {**record, "history": history[:-1]})
        write_answers(path / "predictions.csv", task, splits, probabilities)
        write_card(path, task, record, card_of_recipe(record))
        write_json(path / "run.json", record)
    return directory


def card_of_recipe(record):
    """What its card says of it."""
    told, data = record["arguments"], record["data"]
    return CardText(
        library=None,
        cost="",
        how=(
            f"technique: {record['technique']}, as the authors' code does it (`--recipe paper`)",
            f"model: {shown(str(told['model']))}; {told['max_length']} tokens per row",
        ),
        use="Nothing to load: the weights are not kept. It is for the comparison with what was published.",
        privacy="`predictions.csv` is about single notes; remove it before you pass this directory on.",
        limits=(
            "No validation split: the test notes were scored after each epoch, and "
            f"{data['copied']} of {data['sizes']['test']} are copies of training notes. So its scores are no "
            "estimate for other notes.",
        ),
    )


def write_answers(path, task, splits, probabilities):
    """predictions.csv: row id, label, which test notes have the same text, whether train has it, answer."""
    texts, train_texts, rows = {}, set(map(text_key, splits["train"])), []
    for note, row in zip(splits["test"], probabilities, strict=True):
        key = text_key(note)
        number = texts.setdefault(key, len(texts))
        rows.append([note.row_id, task.truth(note), number, int(key in train_texts), *task.record(row)])
    write_csv(path, ["row_id", "label", "same_text", "in_train", *task.header()], rows, private=True)
