"""Tuning by search: several settings of a run are trained, validation chooses one. For sweep.py --search."""

import shutil
from argparse import ArgumentTypeError
from collections import Counter
from itertools import product

import compress
from cli import BadInput, keyword
from files import locked, whole_directory
from run import checkpoint
from run.arguments import OPTIMISATION, given_names, settings
from run.untrusted import LOADED, read_run, read_task


def values_of(text):
    """An argparse type: 'lr=1e-5,3e-5' -> ('lr', ['1e-5', '3e-5'])."""
    name, _, values = text.partition("=")
    values = [value for value in values.split(",") if value]
    if not name or len(set(values)) < 2:
        raise ArgumentTypeError(f"{text!r}: give an argument of train.py and values, such as lr=1e-5,3e-5")
    return name.lstrip("-"), values


def combinations_of(args, search, fixed):
    """The combinations of values, each a list such as ['lr=1e-5', 'rank=8'], that a run can be tuned in.

    args: of the run; search {argument: values}; fixed: words of a command line whose arguments stay.
    """
    used = {*settings(args)}
    if not compress.trains(args.parts, args):
        used -= set(OPTIMISATION)
    used -= set(given_names(fixed))
    names = [name for name in search if keyword(name) in used]
    return [list(words) for words in product(*(spelled_out(n, search[n]) for n in names))] if names else []


def spelled_out(name, values):
    """('lr', ['1e-5']) -> ['lr=1e-5']."""
    return [f"{name}={value}" for value in values]


def tune(directory, trials, make):
    """Make every trial, and copy the run that is best on validation to `directory`.

    trials: arguments of train.py, of one run each; make(arguments) -> its run directory. Raises BadInput if
    the directory holds a run with other settings.
    """
    if checkpoint.is_finished(directory):
        found = read_run(directory, "arguments")["arguments"]
        if found not in [settings(args) for args in trials]:
            raise BadInput(f"{directory}: finished with other settings than --search has; give another --out")
        print(f"{directory.name}: finished already in {directory}")
        return
    with locked(directory):
        best = None
        for args in trials:
            made = make(args)
            facts = read_run(made, "validation.overall", *LOADED)
            scores = facts["validation"]["overall"]
            if best is None or read_task(made, facts).better(scores, best[0]):
                best = scores, made
        print(f"{directory.name}: of {len(trials)} trials {best[1].name} is best on validation")
        with whole_directory(directory) as path:
            shutil.copytree(best[1], path, dirs_exist_ok=True)


def search_facts(search, trials, made):
    """What was tried, and how often which settings were chosen, for sweep.json; None without --search.

    search {argument: values}; trials {row: arguments of its trials}; made {row: [[run directory]]}.
    """
    if not search:
        return None
    trials, chosen = {row: tried for row, tried in trials.items() if tried}, {}
    for row, tried in trials.items():
        words = tried[0].name.rpartition("@")[2].split(",")  # as sweep.trial names it
        names = [word.partition("=")[0] for word in words]
        runs = [read_run(path, "arguments")["arguments"] for folds in made[row] for path in folds]
        found = (" ".join(f"{name}={run[keyword(name)]}" for name in names) for run in runs)
        chosen[row] = dict(Counter(found).most_common())
    return {"given": search, "trials": max(map(len, trials.values())), "chosen": chosen}
