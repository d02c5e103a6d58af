"""MIMIC's ADMISSIONS table -> which admissions are followed by an early, unplanned readmission.

The rule is that of Huang et al. (2019, ClinicalBERT): an admission is positive if the patient's next
unplanned admission begins within a given number of days after its discharge. Planned (ELECTIVE) admissions
are skipped, and so are stays that begin before the discharge. Newborns and stays that end in death are left
out.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from datetime import datetime, timedelta
from itertools import accumulate

from cli import BadInput

NOTHING = ("", "0", "0.0", "na", "nat", "nan", "null", "none")  # how tables write that nobody died
NEEDED = ("SUBJECT_ID", "HADM_ID", "ADMITTIME", "DISCHTIME", "ADMISSION_TYPE")  # columns
DEATH = ("DEATHTIME", "HOSPITAL_EXPIRE_FLAG")  # columns that the table may have


def readmitted(stays, days):
    """({admission id: 0 or 1} of one patient, counts of what was skipped).

    stays: dicts with id, begin, end, kind (upper case) and died, sorted by the time of admission.
    """
    labels, counts = {}, Counter()
    others = [stay for stay in stays if stay["kind"] != "NEWBORN"]
    if newborns := len(stays) - len(others):
        counts["newborn"] = newborns
    begins = [stay["begin"] for stay in others]
    planned = [0, *accumulate(stay["kind"] == "ELECTIVE" for stay in others)]  # among the first i stays
    for i, stay in enumerate(others, 1):  # the later stays are others[i:]
        if stay["died"]:
            counts["died in hospital"] += 1
            continue
        until = stay["end"] + min(timedelta(days=days), datetime.max - stay["end"])
        first, last = (max(i, at) for at in (bisect_left(begins, stay["end"]), bisect_right(begins, until)))
        counts["overlapping next stays looked past"] += first - i
        counts["planned readmissions looked past"] += planned[last] - planned[first]
        labels[stay["id"]] = int(last - first > planned[last] - planned[first])
    return labels, counts


def clean_id(cell):
    """An admission's id; tables that went through pandas have 5.0 for 5."""
    return cell.strip().removesuffix(".0")


def read_stay(row, at, where):
    """One row of an ADMISSIONS table as a dict for readmitted(); at {column: index or None}."""
    times = {}
    for name in ("ADMITTIME", "DISCHTIME"):
        try:
            times[name] = datetime.fromisoformat(row[at[name]].strip()).replace(tzinfo=None)
        except ValueError:
            what = f"column {name} is no date and time such as 2164-10-23 21:09:00"
            raise BadInput(f"{where}: {what}") from None
    return {
        "id": clean_id(row[at["HADM_ID"]]),
        "begin": times["ADMITTIME"],
        "end": times["DISCHTIME"],
        "kind": row[at["ADMISSION_TYPE"]].strip().upper(),
        "died": any(
            at[name] is not None and row[at[name]].strip().casefold() not in NOTHING for name in DEATH
        ),
    }


def read_stays(table):
    """({subject: stays}, number of stays, counts) of an ADMISSIONS table. Raises BadInput naming the line."""
    path = table.path
    at = {name: table.column(name, None, required=name in NEEDED) for name in (*NEEDED, *DEATH)}
    by_subject, lines, counts = {}, {}, Counter()
    for row in table:
        line = table.line
        stay = read_stay(row, at, f"{path}, line {line}")
        if (earlier := lines.get(stay["id"])) is not None:
            raise BadInput(
                f"{path}, line {line}: the HADM_ID of line {earlier} again; list each admission once"
            )
        if stay["end"] < stay["begin"]:
            counts["discharged before admitted, left out"] += 1
            continue
        lines[stay["id"]] = line
        by_subject.setdefault(row[at["SUBJECT_ID"]].strip(), []).append(stay)
    if not lines:
        raise BadInput(f"{path}: no admission in it")
    return by_subject, len(lines), counts


def read_admissions(table, days):
    """({admission id: 0 or 1}, {admission id: subject}, counts) from an ADMISSIONS table."""
    by_subject, stays_read, counts = read_stays(table)
    labels, subjects = {}, {}
    for subject, stays in by_subject.items():
        found, skipped = readmitted(sorted(stays, key=lambda stay: stay["begin"]), days)
        labels.update(found)
        counts.update(skipped)
        subjects.update({stay["id"]: subject for stay in stays})
    return labels, subjects, {"admissions": stays_read, **counts}
