"""The techniques by name. Adding one = one new file + one line of this dict; its place in the dict is its place in a chain."""

from cli import BadInput, keyword
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
    "quantization": Quantization,
}


def parse(names):
    """'distillation+pruning' -> its names, checked: they exist, base stands alone, the order is one that works."""
    parts = names.split("+")
    unknown = [name for name in parts if name not in TECHNIQUES]
    if unknown:
        raise BadInput(f"--technique {names}: no technique {unknown[0]!r}; there are {', '.join(TECHNIQUES)}, and a+b chains")
    check_order(parts)
    return parts


def check_order(parts):
    """Raises BadInput unless techniques follow each other in an order that works, each once."""
    places = [list(TECHNIQUES).index(name) for name in parts]
    if len(parts) > 1 and "base" in parts:
        raise BadInput(f"{'+'.join(parts)}: base is no technique at all and cannot be chained")
    if clash := "lora" in parts and {"lowrank", "pruning"}.intersection(parts):
        raise BadInput(
            f"{'+'.join(parts)}: lora freezes the weights that {clash.pop()} would change; merge first, then --start from that run"
        )
    if sorted(set(places)) != places:
        order = " < ".join(list(TECHNIQUES)[1:])
        raise BadInput(f"{'+'.join(parts)}: a chain takes each technique once, in this order: {order}")


def trains(parts, options):
    """Whether any of the named techniques has epochs of its own, given the parsed arguments."""
    return any(TECHNIQUES[part].trains_with(options) for part in parts)


def needs(parts):
    """Names of what the named techniques take from outside, such as a teacher."""
    return {need for part in parts for need in TECHNIQUES[part].NEEDS}


def build(parts, options, **supplied):
    """A Chain of the named techniques. options: {keyword: value} of all flags; supplied: what train.py loads for them."""
    chain = []
    for name in parts:
        technique = TECHNIQUES[name]
        keywords = {keyword(flag): options[keyword(flag)] for flag in technique.OPTIONS if keyword(flag) in options}
        chain.append(technique(**{**keywords, **{need: supplied.get(need) for need in technique.NEEDS}}))
    return Chain(chain)


def changed(compression):
    """Names of the techniques in a run's compression.json whose layers are not a plain checkpoint's."""
    return [facts["technique"] for facts in compression if not TECHNIQUES[facts["technique"]].is_plain(facts)]


def cpu_only(compression):
    """Whether any technique in a run's compression.json runs on a CPU alone."""
    return any(TECHNIQUES[facts["technique"]].cpu_only for facts in compression)


def rebuild(model, compression):
    """A skeleton model -> the structure described by a run's compression.json."""
    for facts in compression:
        model = TECHNIQUES[facts["technique"]].rebuild(model, facts)
    return model
