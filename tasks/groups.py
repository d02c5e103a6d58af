"""Scores of groups of test examples: those of one value in a column, or of what the task itself tells apart.

Groups are named in what a run prints and stores, so their names must look like names, and a group of fewer
than FEWEST examples is pooled with the others like it.
"""

import re
from collections import Counter

from cli import BadInput

FEWEST = 10
OTHER, EMPTY = "(other)", "(empty)"
SIGNS, MOST_LETTERS, MOST_WORDS = ".,:;/&()+'%<>#?-", 60, 6
NAME = re.compile(rf"[\w {re.escape(SIGNS)}]{{1,{MOST_LETTERS}}}")
LIKE_TEXT = (
    f"look like text: over {MOST_LETTERS} characters or {MOST_WORDS} words, or signs other than "
    + " ".join(SIGNS)
)


def strange_names(names):
    """Those of the names that look like text, as LIKE_TEXT says."""
    return [name for name in names if not NAME.fullmatch(name) or len(re.findall(r"\w+", name)) > MOST_WORDS]


def members_of(examples):
    """{column: {value: numbers of its examples}}, the largest group first, small ones, pooled, last."""
    marks = [getattr(example, "groups", None) or {} for example in examples]
    found = {}
    for column in dict.fromkeys(column for mark in marks for column in mark):
        counts = Counter(mark.get(column) or EMPTY for mark in marks)
        shown = sorted((v for v in counts if counts[v] >= FEWEST), key=lambda value: (-counts[value], value))
        found[column] = {value: [] for value in (*shown, OTHER)}
        for number, mark in enumerate(marks):
            value = mark.get(column) or EMPTY
            found[column][value if value in shown else OTHER].append(number)
        if not found[column][OTHER]:
            del found[column][OTHER]
    return found


def refuse_strange_groups(examples):
    """Raises BadInput if a group that would be shown looks like text, not like a name."""
    for column, groups in members_of(examples).items():
        if strange := strange_names(groups):
            what = f"{len(strange)} of its {len(groups)} groups {LIKE_TEXT}"
            raise BadInput(f"--subgroups {column}: {what}; name another column")


def group_scores(task, examples, predictions, what):
    """{column: {value: {"count", "overall", "intervals"}}} of the examples' groups; prints a line for each.

    what: the examples in words, such as "test notes".

    Shown is the score that suits groups: a macro average counts labels that a group lacks as 0.
    """
    found = {}
    for column, groups in members_of(examples).items():
        wording, found[column] = task.headline.get(task.group_score, task.group_score), {}
        print(f"{what} by {column}, {wording} [95% interval]:")
        for value, numbers in groups.items():
            own = [examples[i] for i in numbers], [predictions[i] for i in numbers]
            overall = task.score(*own).overall
            known = task.intervals(overall, *own)
            found[column][value] = {"count": len(numbers), "overall": overall, "intervals": known}
            print(f"  {value}: {group_cell(found[column][value], task.group_score)}", flush=True)
    return found


def group_cell(group, score):
    """'34, 0.9412 [0.853, 1.000]': the size of a group, and a score of it if it is defined."""
    value, interval = group["overall"].get(score), group["intervals"].get(score)
    shown = "undefined" if value is None else f"{value:.4f}"
    return f"{group['count']:,}, {shown}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
