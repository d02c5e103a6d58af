"""The rule of tasks/negation.py on NegEx's annotated sentences: python -m experiments.negex FILE [OUT.csv]

Reports of odd numbers are those on which phrases and windows were chosen; those of even numbers are the test.
"""

import re
import sys
from pathlib import Path

import numpy as np

import stats
from cli import BadInput, run_script
from files import write_csv
from metrics import weighted_sums
from tasks.negation import negated

HALVES = {"odd, tuned on": 1, "even, test": 0}
# Chapman et al. 2001, J Biomed Inform 34:301-310, on other sentences (1,235 mentions in discharge summaries)
PUBLISHED = {"precision": 0.845, "recall": 0.778, "specificity": 0.945}
HEADER = ("reports", "mentions", "negated", "precision", "recall", "specificity", "F1", "F1_low", "F1_high")


def read_mentions(path):
    """([(report number, sentence, (start, stop) of the mention, whether it is negated)], rows left out).

    Four columns separated by tabs, no quoting, Latin-1: report, concept, sentence with the concept in
    capitals, Negated or Affirmed.
    """
    mentions, lost = [], 0
    for number, line in enumerate(Path(path).read_text(encoding="latin-1").split("\n")[1:], 2):
        cells = [cell.strip().strip('"').strip() for cell in line.split("\t")]
        if not line.strip():
            continue
        if len(cells) != 4 or cells[3] not in ("Negated", "Affirmed") or not cells[0].isdigit():
            raise BadInput(f"{path}, line {number}: not report, concept, sentence, Negated or Affirmed")
        report, concept, sentence, label = cells
        capitals = r"\s+".join(map(re.escape, concept.upper().split()))
        found = re.search(capitals, sentence) or re.search(capitals, sentence, re.I)
        if found:
            mentions.append((int(report), sentence.lower(), found.span(), label == "Negated"))
        lost += not found
    return mentions, lost


def f1_of(sums):
    """F1 of (..., 3) sums of hits, false alarms, misses."""
    return 2 * sums[..., 0] / (2 * sums[..., 0] + sums[..., 1] + sums[..., 2])


def scores(mentions):
    """The cells of HEADER for some mentions; the interval draws reports whole, and is empty below ten."""
    reports, counts, kept = [report for report, *_ in mentions], [], 0
    for _, sentence, place, truth in mentions:
        said = negated(sentence, *place)
        kept += not said and not truth
        counts.append([said and truth, said and not truth, truth and not said])
    counts = np.array(counts, np.int64)
    hits, alarms, misses = counts.sum(0).tolist()
    f1 = float(f1_of(counts.sum(0)))
    found = stats.intervals_of({"F1": f1}, {"F1": weighted_sums(counts, f1_of)}, reports)
    return [
        *(len(set(reports)), len(mentions), hits + misses, hits / (hits + alarms), hits / (hits + misses)),
        *(kept / (kept + alarms), f1, *found.get("F1", (None, None))),
    ]


def main(argv=None):
    """Print the scores of both halves, and write them if a file is named."""
    path, *out = sys.argv[1:] if argv is None else argv
    mentions, lost = read_mentions(path)
    rows = [[name, *scores([m for m in mentions if m[0] % 2 == odd])] for name, odd in HALVES.items()]
    precision, recall, specificity = PUBLISHED.values()
    f1 = 2 * precision * recall / (precision + recall)
    rows.append(["NegEx as published, other sentences", *[None] * 3, *PUBLISHED.values(), f1, None, None])
    print(f"{len(mentions)} mentions; {lost} rows left out, whose concept is not in the sentence")
    for row in rows:
        known = zip(HEADER, row[1:], strict=True)
        shown = (f"{name} {value:.4g}" for name, value in known if value is not None)
        print(f"{row[0]}:", ", ".join(shown))
    if out:
        write_csv(Path(out[0]), ["half", *HEADER], rows)


if __name__ == "__main__":
    run_script(main)
