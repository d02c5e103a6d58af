"""Every flag of a run, and which of them decide what is learnt."""

import sys
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path

import compress
from cli import BadInput, Parser, fold_of, keyword, number, run_script, share_or_file
from data import MAX_ROW_MB
from run.cache import CACHE
from tasks import TASKS, demo

# Arguments that are not compared between runs.
PLACES = (
    "out", "name", "overwrite", "technique", "parts", "device", "compile", "deterministic", "save_minutes",
    "cache", "max_row_mb", "fold", "recipe", "label_seed",
)  # fmt: skip
TEST_SHARE = 0.2  # of the notes, unless --test or --fold says otherwise
# Arguments in which a run may differ from the base run that it starts from or learns from.
OPTIMISATION = (
    "start", "epochs", "batch_size", "accumulate", "lr", "warmup", "weight_decay", "clip", "precision",
    "seed", "attention_dropout", "eval_steps", "patience", "combine", "scaling_factor", "threshold",
    "subgroups",
)  # fmt: skip
# What --recipe paper leaves to choose and records; the rest is the authors'.
RECIPE_FLAGS = (
    "data", "fraction", "model", "revision", "seed", "label_seed", "split_seed", "epochs", "batch_size",
    "max_length", "lr", "top_k", "text_columns", "subject_column", "row_column",
)  # fmt: skip
RECIPE_TAKES = (
    *RECIPE_FLAGS, "recipe", "technique", "task", "out", "overwrite", "device", "balance", "max_row_mb",
)  # fmt: skip


def build_parser():
    """The parser of train.py: run, notes, training, machine, and what each task and technique adds."""
    parser = Parser(
        prog="train.py",
        description="One run: a task x a technique (or a chain of them) -> a run directory and its scores.",
        epilog="@FILE reads arguments from a file, as experiments/*.args are.",
    )
    add_run_flags(parser.add_argument_group("what to run"))
    add_note_flags(parser.add_argument_group("notes"))
    add_training_flags(parser.add_argument_group("training"))
    add_machine_flags(parser.add_argument_group("machine"))
    known = set()
    for kind, classes in (("task", TASKS), ("technique", compress.TECHNIQUES)):
        for name, cls in classes.items():
            group = parser.add_argument_group(f"{kind} {name}") if cls.OPTIONS else None
            for flag, words in cls.OPTIONS.items():
                if flag not in known:  # several may share a flag
                    words = dict(words)
                    group.add_argument(flag, *words.pop("also", ()), dest=keyword(flag), **words)
                known.add(flag)
    return parser


def add_run_flags(group):
    """Task, technique, data, model, and where the results go."""
    add = group.add_argument
    add("--task", default="symptoms", help=f"one of {', '.join(TASKS)} (symptoms)")
    techniques = ", ".join(compress.TECHNIQUES)
    add("--technique", default="base", help=f"one of {techniques}, or a chain a+b (base)")
    add(
        "--data",
        default="demo",
        help="the task's file (CSV, .tsv, .jsonl), plain or .gz; demo = synthetic notes (demo)",
    )
    add(
        "--model", default="demo",
        help="checkpoint directory, hub name, or finished run of another task; demo = a tiny BERT (demo)",
    )  # fmt: skip
    add("--revision", default=None, help="commit of a hub name as --model, 40 hex digits (the newest)")
    add(
        "--fresh-pooler",
        action="store_true",
        help="start with a new pooler, as from a masked language model (off)",
    )
    add("--start", default=None, help="start from this finished run instead of --model (none)")
    add("--out", default=None, help="results directory (results/TASK)")
    add("--name", default=None, help="name of the run directory in it (the technique)")
    add("--overwrite", action="store_true", help="train again what is finished (off)")
    add(
        "--recipe", choices=("paper",), default=None,
        help="paper = do what the authors' code does, faults included, to compare; symptoms only (none)",
    )  # fmt: skip
    seed = number(int, 0, 2**63 - 1)
    add("--label-seed", type=seed, default=0, help="--recipe: seed of the order of the 40 symptoms (0)")


def add_note_flags(group):
    """Which notes are read, how they are split, how many tokens of each."""
    add = group.add_argument
    share = number(float, 0, 1, low_open=True)
    add("--fraction", type=share, default=1.0, help="share of the rows to read, chosen by row id (1)")
    add("--validation", type=share_or_file, default=0.1, help="share of the notes, or a file of them (0.1)")
    add(
        "--test",
        type=share_or_file,
        default=TEST_SHARE,
        help="the same for the final test, scored once (0.2)",
    )
    add("--fold", type=fold_of, default=None, help="test on this fold of the notes, such as 2/5 (none)")
    seed = number(int, 0, 2**63 - 1)
    add("--split-seed", type=seed, default=42, help="seed of sampling, balancing and splitting (42)")
    length = number(int, 4, 10**6)
    add(
        "--max-length",
        type=length,
        default=None,
        help="tokens per row, special ones included (256; mlm: --block-size)",
    )
    add(
        "--cache", default=str(CACHE),
        help="owner-only directory of token ids, for the next run; none = keep none (%(default)s)",
    )  # fmt: skip


def add_training_flags(group):
    """Epochs, batches, rates, precision."""
    add = group.add_argument
    count, share = number(int, 1, 10**5), number(float, 0, 1)
    add("--epochs", type=number(int, 0, 10**4), default=5, help="passes over the training notes (5)")
    add(
        "--eval-steps",
        type=number(int, 0, 10**9),
        default=0,
        help="steps between validations; 0 = once per epoch (0)",
    )
    add(
        "--patience", type=number(int, 0, 10**6), default=0,
        help="stop after this many validations without a better one; 0 = never (0)",
    )  # fmt: skip
    add("--batch-size", type=count, default=16, help="notes per batch (16)")
    add("--accumulate", type=count, default=1, help="batches per optimizer step (1)")
    add(
        "--lr", type=number(float, 0, 1, low_open=True), default=None,
        help=f"peak learning rate (the paper's, 2e-5 to 5e-5 by technique; demo model: {demo.LEARNING_RATE})",
    )  # fmt: skip
    add(
        "--warmup",
        type=share,
        default=0.0,
        help="share of the steps with a rising rate, before the cosine to 0 (0)",
    )
    add("--weight-decay", type=share, default=0.01, help="AdamW's weight decay (0.01)")
    add(
        "--clip",
        type=number(float, 0, 10**6, low_open=True),
        default=1.0,
        help="largest norm of the gradient (1)",
    )
    add(
        "--attention-dropout", type=number(float, 0, 1, high_open=True), default=0.0,
        help="dropout of attention probabilities; above 0 steps take 1.6 times as long in fp32 (0)",
    )  # fmt: skip
    add(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="of training; auto = bf16 on CUDA and on CPUs that multiply bf16, else fp32 (auto)",
    )  # fmt: skip
    seed = number(int, 0, 2**63 - 1)
    add(
        "--seed",
        type=seed,
        default=42,
        help="seed of the new head, of dropout and of the order of batches (42)",
    )


def add_machine_flags(group):
    """Where the run is made; nothing here changes what is learnt."""
    add = group.add_argument
    add(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="auto = CUDA, MPS or CPU (auto)",
    )
    add(
        "--compile",
        action="store_true",
        help="train through torch.compile, on CUDA; the first steps are slow (off)",
    )
    add(
        "--deterministic", action="store_true", help="equal bits from run to run on one machine; slower (off)"
    )
    minutes = number(float, 0, 10**6)
    add("--save-minutes", type=minutes, default=10.0, help="minutes between saves of an unfinished run (10)")


def add_reading_flags(parser):
    """How predict.py and evaluate.py read a file with a finished run."""
    add = parser.add_argument
    add("--text-columns", "--text-column", default=None, help="column of the note (as the run was trained)")
    add("--row-column", default=None, help="column of the row id (as the run was trained)")
    most = number(int, 1, 2000)
    add("--max-row-mb", type=most, default=MAX_ROW_MB, help=f"millions of characters per row ({MAX_ROW_MB})")
    tokens = number(int, 1, 10**8)
    add("--batch-tokens", type=tokens, help="tokens per batch, padding counted (2048; 65536 on a GPU)")
    places = ("auto", "cpu", "cuda", "mps")
    add("--device", choices=places, default="auto", help="int8 runs are always on cpu (auto)")
    add(
        "--deterministic", action="store_true", help="equal bits from run to run on one machine; slower (off)"
    )


def take_columns(options, args):
    """Set a finished task's options, a Namespace, to another file's columns; args of add_reading_flags."""
    options.text_columns = args.text_columns or options.text_columns
    options.row_column = args.row_column or options.row_column
    options.max_row_mb = args.max_row_mb
    options.subject_column = None  # only a split needs it


def parse_arguments(argv=None):
    """Parsed and checked arguments; defaults that depend on others filled in."""
    args = build_parser().parse_args(argv)
    if args.task not in TASKS:
        raise BadInput(f"--task {args.task}: no such task; there are {', '.join(TASKS)}")
    args.parts = compress.parse_chain(args.technique)
    task = TASKS[args.task]
    args.out, args.name = args.out or f"results/{args.task}", args.name or args.technique
    if args.max_length and task.length_flag != "max_length":
        raise BadInput(f"--max-length: --task {args.task} has --{task.length_flag.replace('_', '-')} instead")
    args.max_length = getattr(args, task.length_flag) or 256
    if Path(args.name).name != args.name or args.name.startswith(".") or not args.name.isprintable():
        raise BadInput(f"--name {args.name}: give a plain name, without / and not beginning with a dot")
    if args.revision and (args.model == "demo" or Path(args.model).is_dir()):
        raise BadInput(f"--revision: --model {args.model} is no hub name, so it has no revisions")
    settle_fold(args)
    refuse_no_epochs(args)
    compress.check(args.parts, args)
    if args.recipe:
        refuse_beside_recipe(args, given_names(argv))
    return args


def settle_fold(args):
    """With --fold the test split is that fold: args.test becomes it. Raises BadInput for another --test."""
    if not args.fold:
        return
    if args.test != TEST_SHARE:
        raise BadInput("--fold: says which notes are the test split; leave out --test")
    most = 1 - 1 / args.fold[1]  # what the fold leaves
    if not isinstance(args.validation, str) and args.validation >= most:
        raise BadInput(f"--validation {args.validation}: --fold leaves only {most:g} of the notes")
    args.test = args.fold


def refuse_beside_recipe(args, given):
    """Raises BadInput for what --recipe does not have: another task or technique, flags that it fixes."""
    task = TASKS["symptoms"]
    if args.task != task.name or args.technique not in task.techniques:
        names = ", ".join(task.techniques)
        raise BadInput(f"--recipe {args.recipe}: is for --task {task.name}, --technique {names}")
    fixed = [f"--{name.strip('_').replace('_', '-')}" for name in given if name not in RECIPE_TAKES]
    if fixed:
        raise BadInput(f"--recipe {args.recipe}: settles {', '.join(fixed)} itself; leave that out")


def refuse_no_epochs(args):
    """Raises BadInput for a run that trains, but for no epoch, and has no head to fit either."""
    task = TASKS[args.task]
    trains = compress.trains(args.parts, args)
    if trains and not args.epochs and not task.can_fit_head(options_of(task, args)):
        raise BadInput(
            "--epochs 0: nothing would be learnt; only --task readmission --head logistic does without "
            "epochs; to score a finished run on other notes: python evaluate.py RUN --data FILE"
        )


def options_of(cls, args):
    """The keywords of a task or a technique among the parsed arguments."""
    return {name: getattr(args, name) for name in map(keyword, cls.OPTIONS)}


def used_options(args):
    """The keywords of this run's task and techniques."""
    classes = [TASKS[args.task], *(compress.TECHNIQUES[part] for part in args.parts)]
    return {keyword(flag) for cls in classes for flag in cls.OPTIONS}


def unused_options(args):
    """The keywords of tasks and techniques that this run does not use."""
    every = {
        keyword(flag)
        for table in (TASKS, compress.TECHNIQUES)
        for cls in table.values()
        for flag in cls.OPTIONS
    }
    return every - used_options(args)


def settings(args):
    """The arguments that decide what this run learns: for run.json, and to tell finished runs apart."""
    unused = unused_options(args)
    return dict(sorted((k, v) for k, v in vars(args).items() if k not in unused and k not in PLACES))


def note_unused(args):
    """Print one line that names the given flags of tasks and techniques that this run does not use."""
    parser, unused = build_parser(), unused_options(args)
    given = [
        action.option_strings[0]
        for action in parser._actions
        if action.dest in unused and getattr(args, action.dest) != action.default
    ]
    if given:
        print(
            f"note: not used by --task {args.task} --technique {args.technique}: {', '.join(sorted(given))}"
        )


def given_names(argv):
    """Names of the arguments that stand on a command line, or in a file that it names."""
    parser, unset = build_parser(), object()
    found = parser.parse_args(argv, Namespace(**{action.dest: unset for action in parser._actions}))
    return [name for name, value in vars(found).items() if value is not unset]


def main(argv=None):
    """For the shell scripts: --show "NAME ..." [OURS ...] -- [THEIRS ...] prints values, one per line.

    Two names are no arguments: "given" are those among THEIRS, "techniques" what the demonstration trains.
    """
    _, names, *words = sys.argv[1:] if argv is None else argv
    cut = words.index("--")
    with redirect_stdout(sys.stderr):
        args = parse_arguments([*words[:cut], *words[cut + 1 :]])
        given = given_names(words[cut + 1 :])
    shown = {**vars(args), "given": " ".join(given), "techniques": " ".join(TASKS[args.task].techniques)}
    for name in names.split():
        print("" if shown[name] is None else shown[name])


if __name__ == "__main__":
    run_script(main)
