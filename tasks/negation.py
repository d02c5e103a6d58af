"""Is a mention negated? A short rule after NegEx (Chapman et al., 2001) and ConText (Harkema et al., 2009).

A phrase of BEFORE, such as "denies", negates what follows it in its sentence; one of AFTER, such as "ruled
out", what stands before it. Neither reaches further than its window of words, or beyond one of ENDS, such as
"but". PSEUDO only look like negations and are taken out first. Texts are in lower case. "Resolved" counts as
negated, as in the annotations of NegEx. The rule does not say who has a symptom, when, or how certain it is.
The libraries for this, negspacy and medspacy, need spaCy: too much for one page.
"""

import re

WINDOW_BEFORE, WINDOW_AFTER = 20, 6  # words between a phrase and the mention
REACH = 300  # characters that are looked at on either side

BEFORE = (
    "no", "not", "cannot", "without", "w/o", "denies", "denied", "deny", "denying", "never", "nor",
    "negative for", "absence of", "lack of", "free of", "resolution of", "rules out", "ruled out",
    "fails to reveal", "failed to reveal",
)  # fmt: skip
AFTER = (
    "ruled out", "unlikely", "negative", "absent", "denied", "none", "free", "resolved", "not present",
    "not seen", "not noted", "not identified", "not found",
)  # fmt: skip
PSEUDO = (
    "no change", "no significant change", "no interval change", "no increase", "no improvement",
    "no more than", "not limited to", "not only", "not necessarily", "not certain", "not sure", "not cause",
    "without difficulty", "without contrast", "without change", "gram negative", "gram-negative",
)  # fmt: skip
ENDS = (
    "but", "however", "although", "though", "yet", "still", "except", "aside from", "apart from",
    "other than", "secondary to", "due to", "because", "which", "who", "reports", "complains of", "admits",
    "positive for", "presents", "presented", "developed", "has had",
)  # fmt: skip


def any_of(phrases):
    """The expression for any of the phrases as whole words, with white space of any length between words."""
    longest_first = sorted(phrases, key=len, reverse=True)
    spaced = (r"\s+".join(map(re.escape, phrase.split())) for phrase in longest_first)
    return rf"\b(?:{'|'.join(spaced)})\b"


NEGATES_NEXT, NEGATES_LAST, ONLY_LOOKS = (re.compile(any_of(list_)) for list_ in (BEFORE, AFTER, PSEUDO))
SCOPE_ENDS = re.compile(rf"[.!?](?=\s|$)|;|\n\s*\n|{any_of(ENDS)}")


def negated(text, start, stop):
    """Whether the mention text[start:stop] of a lower-cased text is negated."""
    before, after = text[max(0, start - REACH) : start], text[stop : stop + REACH]
    if before.endswith("non-"):
        return True
    if NEGATES_NEXT.search(before):  # most mentions have none, and what follows takes longer
        scope = SCOPE_ENDS.split(ONLY_LOOKS.sub("", before))[-1]
        nearest = [scope[found.end() :] for found in NEGATES_NEXT.finditer(scope)][-1:]
        if any(len(words.split()) <= WINDOW_BEFORE for words in nearest):
            return True
    if not NEGATES_LAST.search(after):
        return False
    scope = SCOPE_ENDS.split(ONLY_LOOKS.sub("", after), maxsplit=1)[0]
    found = NEGATES_LAST.search(scope)
    return found is not None and len(scope[: found.start()].split()) <= WINDOW_AFTER
