"""Synthetic trials for the tasks trials and mlm: reasons why trials stopped, and descriptions.

Both tasks make both files and the same model, so that trials can start from the encoder of mlm.
"""

import random

from files import write_csv
from tasks.demo_phrases import capitalized, vary

# why a trial stopped: (share in percent, *wordings)
CAUSES = {
    "Insufficient_Enrollment": (
        35, "slow|low|poor|insufficient enrollment|recruitment|accrual",
        "problems recruiting|enrolling patients",
        "lack|shortage of eligible|suitable|interested patients|participants",
        "only {n} patients|participants enrolled|recruited",
    ),
    "Business_Administrative": (
        20, "business|strategic|administrative decision|reasons",
        "lack|loss|withdrawal of funding|sponsorship",
        "shift|change in company|portfolio priorities|strategy", "company bankruptcy",
        "contract|agreement not signed|renewed",
    ),
    "Negative": (
        10, "lack of efficacy|benefit|effect",
        "futility|negative_result at|in the interim|second analysis",
        "primary|main endpoint not met", "no difference|improvement over|against placebo",
    ),
    "Logistics_Resources": (
        9, "drug|device supply shortage|delay|problems", "lack of staff|resources|equipment",
        "study drug|kit|scanner not available", "site|laboratory closure|relocation",
    ),
    "Study_Design": (
        8, "change|error|flaw in the|study protocol|design",
        "protocol|design to be revised|replaced", "a new|larger study instead",
        "inclusion criteria too strict|narrow",
    ),
    "Covid19": (
        7, "COVID-19 pandemic|restrictions|lockdown", "coronavirus pandemic|restrictions",
        "recruitment halted in the pandemic",
    ),
    "Safety_Sideeffects": (
        6, "safety|toxicity concerns|signal|findings", "serious|severe adverse events|reactions",
        "{n} deaths|bleeds in the first|active arm",
    ),
    "Study_Staff_Moved": (
        5, "PI|investigator left|leaving the institution|university|site",
        "PI|investigator retired|relocated", "departure|retirement of the PI|coordinator",
        "investigator|PI no longer at the|this site|institution",
    ),
}  # fmt: skip
STOPPED = (
    "{c}", "{c}", "due to {c}", "study|trial stopped|terminated|halted early because_of|due_to {c}",
    "{c} at the site|center", "ended after {n} months|patients: {c}", "{c}, no safety concerns",
    "{c}; not related to safety|efficacy|funding", "{c} and|with {o}", "{c}, also|then {o}",
    "PI|sponsor decision: {c}", "{c} |with_{n}_of_50_enrolled",
)  # fmt: skip
CONDITIONS = {
    "All": (
        "type 2 diabetes", "hypertension", "asthma", "depression", "colorectal cancer", "migraine",
        "lung cancer",
    ),
    "Male": (
        "prostate cancer", "prostate enlargement", "low testosterone", "erectile dysfunction",
        "male infertility",
    ),
    "Female": (
        "breast cancer", "ovarian cancer", "endometriosis", "preterm birth", "menopause",
        "female infertility",
    ),
}  # fmt: skip
# who may take part
ELIGIBLE = {
    "All": ("Men or|and women aged {n} years|or_older", "Adults of any|either sex|gender"),
    "Male": ("Male patients|participants", "Men aged {n} years|or_older"),
    "Female": (
        "Female patients|participants", "Women aged {n} years|or_older",
        "Pregnant|Postmenopausal women",
    ),
}  # fmt: skip
TREATMENTS = (
    "metformin",
    "exercise|yoga training",
    "vitamin D",
    "a new vaccine|antibody",
    "cognitive therapy",
)
SUMMARIES = (
    "This study tests|compares {t} in patients|participants with {c}",
    "The aim is to learn whether {t} improves|relieves {c}",
    "Patients will receive {t} or|against placebo for {n} weeks|months",
    "{c} is a common|major health problem",
    "The main|primary outcome is survival|pain at {n} months|weeks",
    "About {n} sites|clinics take part in the trial|study",
)  # fmt: skip
CRITERIA = (
    "Able|Willing to give|sign informed consent",
    "Diagnosis of {c} for at_least|over {n} months|weeks", "No allergy to {t}",
    "Adequate liver|kidney|bone_marrow function", "No other cancer|trial within {n} months",
    "Stable use of {t} for {n} weeks", "Pregnant or nursing|breastfeeding women are excluded",
    "Partners use contraception for {n} weeks",
)  # fmt: skip


def draw_reason(rng, label):
    """A reason of one class, in which another class may be mentioned."""
    other = rng.choice([name for name in CAUSES if name != label])
    cause, other = (vary(rng, rng.choice(CAUSES[name][1:])) for name in (label, other))
    return f"{capitalized(vary(rng, rng.choice(STOPPED), c=cause, o=other))}."


def write_reasons(path, rows, seed=0):
    """Write stop_reasons.csv, reasons in eight classes; returns them. One in 12 is a copy."""
    rng = random.Random(seed)
    written, seen = [], set()
    for row in range(rows):
        if written and rng.random() < 0.08:
            reason, *_, label = rng.choice(written)
        else:
            label = rng.choices(list(CAUSES), [share for share, *_ in CAUSES.values()])[0]
            reason = draw_reason(rng, label)
            while reason in seen:
                reason = draw_reason(rng, label)
            seen.add(reason)
        phase = rng.choice(("", "Phase 1", "Phase 2", "Phase 3", "Phase 4"))
        status = rng.choice(("Terminated", "Withdrawn", "Suspended"))
        written.append((reason, f"NCT{row + 1000001:08d}", phase, status, label))
    write_csv(path, ("context", "nct_id", "phase", "status", "label"), written)
    return [row[0] for row in written]


def write_descriptions(path, rows, seed=0):
    """Write trials.csv: titles, summaries and criteria of trials; returns its texts."""
    rng = random.Random(seed)
    written = []
    for row in range(rows):
        gender = rng.choices(list(CONDITIONS), (70, 15, 15))[0]
        condition = rng.choice(CONDITIONS[gender if rng.random() < 0.5 else "All"])
        slots = {"c": condition, "t": vary(rng, rng.choice(TREATMENTS))}
        title = vary(rng, "{t} for|in|against {c}|patients_with_{c}", **slots)
        lines = [
            f"{capitalized(vary(rng, line, **slots))}." for line in rng.sample(SUMMARIES, rng.randint(2, 5))
        ]
        told = [rng.choice(ELIGIBLE[gender])] if rng.random() < 0.85 else []
        told += rng.sample(CRITERIA[: 6 if gender == "Male" else 8], rng.randint(2, 5))
        criteria = [f"- {vary(rng, line, **slots)}" for line in told]
        written.append(
            (f"NCT{row + 2000001:08d}", gender, capitalized(title), " ".join(lines), "\n".join(criteria))
        )
    write_csv(path, ("nct_id", "gender", "brief_title", "brief_summary", "eligibility_criteria"), written)
    return [text for row in written for text in row[2:]]


def write_both(directory, rows):
    """Write stop_reasons.csv, at most 3,000 rows, and trials.csv, half as many; returns texts."""
    rows = min(rows, 3000)
    reasons = write_reasons(directory / "stop_reasons.csv", rows)
    return reasons + write_descriptions(directory / "trials.csv", rows // 2)
