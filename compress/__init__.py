"""The techniques by name, and what a chain of them is and needs.

Adding one = one new file + one line of this dict; its place in the dict is its place in a chain.
"""

from cli import BadInput, keyword
from compress.bf16 import Bf16
from compress.distillation import Distillation
from compress.lora import LoRA
from compress.lowrank import LowRank
from compress.pruning import Pruning
from compress.quantization import Quantization
from compress.technique import Chain, Technique

TECHNIQUES = {
    "base": Technique,
    "distillation": Distillation,
    "lora": LoRA,
    "lowrank": LowRank,
    "pruning": Pruning,
    "bf16": Bf16,
    "quantization": Quantization,
}


# --- names and flags -> a chain; parts: names of techniques, options: the parsed arguments (a Namespace)


def parse_chain(names):
    """'distillation+pruning' -> ['distillation', 'pruning'].

    Raises BadInput for an unknown name, or for an order that does not work.
    """
    parts = names.split("+")
    if unknown := [name for name in parts if name not in TECHNIQUES]:
        raise BadInput(
            f"--technique {names}: no technique {unknown[0]!r}; "
            f"there are {', '.join(TECHNIQUES)}, and chains a+b"
        )
    check_order(parts)
    return parts


def check_order(parts):
    """Raises BadInput unless the techniques can follow each other in this order, each once."""
    chain = "+".join(parts)
    if len(parts) > 1 and "base" in parts:
        raise BadInput(f"{chain}: base is no technique at all and cannot be chained")

    for name in parts:
        cls = TECHNIQUES[name]
        if clash := [other for other in parts if issubclass(TECHNIQUES[other], cls.excludes)]:
            raise BadInput(f"{chain}: {name} {cls.excludes_because.format(clash[0])}")

    places = [list(TECHNIQUES).index(name) for name in parts]
    if sorted(set(places)) != places:
        order = " < ".join(list(TECHNIQUES)[1:])
        raise BadInput(f"{chain}: a chain takes each technique once, in this order: {order}")

    own = [name for name in parts if TECHNIQUES[name].loss is not Technique.loss]
    if len(own) > 1:
        raise BadInput(f"{chain}: {' and '.join(own)} each have a loss of their own; chain only one of them")


def check(parts, options):
    """Raises BadInput for flags of these techniques that do not go together."""
    chain = [TECHNIQUES[name] for name in parts]
    for cls in chain:
        cls.check(options, chain)


def needs(parts):
    """What the techniques need from outside: a set of 'teacher', 'calibration', 'source', 'fresh'."""
    return {need for name in parts for need in TECHNIQUES[name].NEEDS}


def trains(parts, options):
    """Whether any of the techniques has epochs of its own."""
    return any(TECHNIQUES[name].trains_with(options) for name in parts)


def starts_from_base(parts, options):
    """Whether the chain starts from the finished base run, unless --start names another run.

    It does if it trains nothing, or if one of its techniques works on a model that has learnt the task. With
    a teacher it does not: the model is then a copy of the teacher.
    """
    if "teacher" in needs(parts):
        return False
    return not trains(parts, options) or any(TECHNIQUES[name].starts_from_base(options) for name in parts)


def starts_from(parts, options):
    """Another checkpoint to start from than --model, or None."""
    return next((source for name in parts if (source := TECHNIQUES[name].starts_from(options))), None)


def build(parts, options, **supplied):
    """A Chain of the named techniques.

    options: {keyword: value} of flags, such as vars(arguments); those of other techniques are ignored, and a
    flag that is absent has its default. supplied: {what a technique NEEDS: its value}.
    """
    chain = []
    for name in parts:
        cls = TECHNIQUES[name]
        keywords = {keyword(flag): options[keyword(flag)] for flag in cls.OPTIONS if keyword(flag) in options}
        keywords.update({need: supplied[need] for need in cls.NEEDS if need in supplied})
        technique = cls(**keywords)
        technique.name = name
        chain.append(technique)
    return Chain(chain)


# --- a finished run's compression.json: [{"technique": name, **facts}]


def changed(compression):
    """Names of the techniques whose layers are not a plain checkpoint's."""
    return [facts["technique"] for facts in compression if not TECHNIQUES[facts["technique"]].is_plain(facts)]


def cpu_only(compression):
    """Whether the run's layers run on the CPU alone."""
    return any(TECHNIQUES[facts["technique"]].cpu_only for facts in compression)


def final(compression):
    """Whether the run can be neither trained nor compressed further."""
    return any(TECHNIQUES[facts["technique"]].final for facts in compression)


def rebuild(model, compression):
    """An untrained model of a run's config -> the structure that the run's compression.json describes."""
    for facts in compression:
        model = TECHNIQUES[facts["technique"]].rebuild(model, facts)
    return model
