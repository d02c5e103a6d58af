"""What every script shares: bad input in one line, flags with bounds, one way to start."""

import argparse
import os
import re
import shlex
import sys
import warnings
from keyword import iskeyword


class BadInput(Exception):
    """What the user gave cannot be used. The message is one line: what is wrong, where, what to do."""


def run_script(main):
    """Call main(). BadInput ends in one line and exit code 2, Ctrl-C in 130, a closed pipe in 141.

    So does what the system refuses, such as a full disk: code 2.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    if hasattr(sys.stdout, "reconfigure"):  # a file's name may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except BadInput as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command takes up where it left off", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        drop_output()
        sys.exit(141)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {printable(f'{where}{error.strerror or error}')}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # it was standard output that could not be written
            drop_output()
        sys.exit(2)


def printable(message):
    """A message as one line that a terminal can show; the name of a file may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(message))


def drop_output():
    """Send what is left of standard output nowhere: Python flushes once more as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def number(kind, low, high, low_open=False, high_open=False):
    """An argparse type: a finite int or float from low to high, the ends included unless they are open."""

    interval = f"{'(' if low_open else '['}{low}, {high}{')' if high_open else ']'}"

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {'a whole number' if kind is int else 'a number'}"
            ) from None
        if not (low < value if low_open else low <= value) or not (
            value < high if high_open else value <= high
        ):
            raise argparse.ArgumentTypeError(f"{text} is outside {interval}")
        return value

    return convert


def share_or_file(text):
    """An argparse type: a share in (0, 0.5), or else the path of a file."""
    try:
        float(text)
    except ValueError:
        return text
    return number(float, 0, 0.5, True, True)(text)


def fold_of(text):
    """An argparse type: '2/5', the second of five folds, as [2, 5]."""
    found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    number_of, folds = map(int, found.groups()) if found else (0, 0)
    if folds < 2 or not 1 <= number_of <= folds:
        raise argparse.ArgumentTypeError(f"{text!r} is no fold; give e.g. 2/5, the second of five")
    return [number_of, folds]


MOST_SEEDS = 1000  # of a sweep, if only their number is given


def seed_list(text):
    """An argparse type: '3' is the seeds 1 to 3, '5,8' these two, '7,' this one; a list of numbers."""
    try:
        seeds = [int(seed) for seed in text.split(",") if seed.strip()]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds) or seeds == [0]:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give how many seeds, or whole numbers, comma-separated, that differ from each other"
        )
    if "," in text:
        return seeds
    if seeds[0] > MOST_SEEDS:
        raise argparse.ArgumentTypeError(
            f"more than {MOST_SEEDS} seeds; for that one seed write a comma after it"
        )
    return list(range(1, seeds[0] + 1))


def keyword(flag):
    """The keyword for a flag: '--student-layers' -> 'student_layers', '--global' -> 'global_'."""
    name = flag.lstrip("-").replace("-", "_")
    return f"{name}_" if iskeyword(name) else name


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are BadInput; no flag can be abbreviated.

    @FILE stands for the arguments in that file, written as on a command line; # begins a comment.
    """

    def __init__(self, **keywords):
        super().__init__(allow_abbrev=False, fromfile_prefix_chars="@", **keywords)

    def parse_known_args(self, args=None, namespace=None):
        """Also refuses an @FILE that is no text or names itself, and --flag=--, which argparse lets pass."""
        try:
            found, rest = super().parse_known_args(args, namespace)
        except UnicodeDecodeError:
            self.error("an @ file is not UTF-8")
        except RecursionError:
            self.error("an @ file names itself")
        for action in self._actions:
            if action.nargs is None and getattr(found, action.dest, None) == []:
                self.error(f"argument {action.option_strings[0]}: expected one argument")
        return found, rest

    def convert_arg_line_to_args(self, line):
        """The arguments in one line of an @FILE."""
        if "\0" in line:
            self.error("an @ file has a NUL byte")
        try:
            return shlex.split(line, comments=True)
        except ValueError:
            self.error("a quote in the @ file is not closed")

    def error(self, message):
        """Raise BadInput instead of printing the usage."""
        raise BadInput(f"{message} (see python {self.prog} --help)")
