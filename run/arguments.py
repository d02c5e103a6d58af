"""Every flag of a run, and which of them decide what is learnt."""

import sys
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path

import compress
from cli import BadInput, Parser, keyword, number, run_script, share_or_file
from run.cache import CACHE
from tasks import TASKS, demo

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


def given_names(argv):
    """Names of the arguments that stand on a command line, or in a file that it names."""
    parser, unset = build_parser(), object()
    found = parser.parse_args(argv, Namespace(**{action.dest: unset for action in parser._actions}))
    return [name for name, value in vars(found).items() if value is not unset]


def main(argv=None):
    """For the shell scripts: --show "NAME ..." [OURS ...] -- [THEIRS ...] prints values of both together, one per line.

    Two names are more than arguments: "given" are those among THEIRS, "techniques" what the task's demonstration trains.
    """
    _, names, *words = sys.argv[1:] if argv is None else argv
    cut = words.index("--")
    with redirect_stdout(sys.stderr):
        args = parse([*words[:cut], *words[cut + 1 :]])
        given = given_names(words[cut + 1 :])
    shown = {**vars(args), "given": " ".join(given), "techniques": " ".join(TASKS[args.task].techniques)}
    for name in names.split():
        print("" if shown[name] is None else shown[name])


if __name__ == "__main__":
    run_script(main)
