"""Baselines on the notes of a run, stored beside it: python baselines.py --data notes.csv --out results/mine

Arguments are train.py's; those that name a model or a training are not used. The same notes with the same
--split-seed, --fold and so on are split as train.py splits them. Each baseline is a run directory OUT/NAME
(majority, tfidf; for symptoms also rule; for entities dictionary: run/baseline.py), so report.py and
benchmark.py show it beside the models. sweep.py --baselines makes them for every seed and fold.
"""

from cli import BadInput, Parser, run_script
from files import writable_directory
from run import arguments, baseline
from tasks import TASKS


def main(argv=None):
    """Fit and store every baseline of the task. Returns their directories."""
    parser = Parser(prog="baselines.py", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=None, help="baselines to fit, comma-separated (all of the task)")
    own, words = parser.parse_known_args(argv)
    args = arguments.parse_arguments(words)
    if taken := {"technique", "name", "start"} & set(arguments.given_names(words)):
        raise BadInput(f"--{min(taken)}: a baseline has none; leave it out")
    known = TASKS[args.task].baselines
    names = own.only.split(",") if own.only else known
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"--only: no baseline {unknown[0]!r} for {args.task}; there are {', '.join(known)}")
    if not names:
        raise BadInput(f"--task {args.task}: has no baselines")
    writable_directory(args.out)
    return [baseline.make_baseline(arguments.parse_arguments(words), name) for name in names]


if __name__ == "__main__":
    run_script(main)
