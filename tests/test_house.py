"""The house keeps its rules: size, names, layers of imports, words of help. Ruff has the rest (.ci/run)."""

import ast
import re
from collections import defaultdict

import pytest

import compress
from conftest import ROOT
from run import arguments

# a module imports from its own floor or from one below; what is not named here is a script or part of one
FLOORS = {
    **dict.fromkeys(("cli", "files", "data", "tables", "parts", "metrics", "stats", "layers"), 0),
    "fast": 1,
    **dict.fromkeys(("compress", "tasks"), 2),
    "run": 3,
}
TOP = 4
NOT_OURS = ("results", "corpora", "models")  # made by runs, ignored by git
LONGER = {"train.train": 80}  # the loop is read whole


def paths(*patterns):
    """Files of the checkout that match, without hidden folders and what runs make."""
    found = (path for pattern in patterns for path in ROOT.glob(pattern))
    return sorted(
        p for p in found if (part := p.relative_to(ROOT).parts[0]) not in NOT_OURS and part[0] != "."
    )


def module_name(path):
    """tasks/ner.py -> tasks.ner, tasks/__init__.py -> tasks."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


EVERY = paths("*.py", "*/*.py")
SOURCES = {module_name(path): ast.parse(path.read_text()) for path in EVERY if path.parent.name != "tests"}
ROOMS = {name.partition(".")[0] for name in SOURCES}
SCRIPTS = [name for name in ROOMS if name not in FLOORS and (ROOT / f"{name}.py").exists()]


def refuse(found):
    """Fail with everything that breaks a rule, one per line."""
    assert not found, "\n".join(["", *map(str, found)])


def functions(tree):
    """Every function of a module, methods and inner ones too."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_the_rules_see_the_code():
    assert {"train", "cli", "tasks.ner", "compress"} <= SOURCES.keys() and FLOORS.keys() <= ROOMS
    assert {"train", "predict", "report", "sweep", "benchmark", "export"} <= set(SCRIPTS)


def test_no_line_is_longer_than_110_characters():
    places = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*EVERY, *paths("*.sh"), ROOT / ".ci/run"]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 110
    ]
    refuse(places)


def test_no_function_is_longer_than_60_lines():
    lengths = {
        f"{m}.{f.name}": f.end_lineno - f.lineno + 1 for m, tree in SOURCES.items() for f in functions(tree)
    }
    refuse([f"{name}: {lines} lines" for name, lines in lengths.items() if lines > LONGER.get(name, 60)])


def test_no_block_has_a_complexity_over_15():
    radon = pytest.importorskip("radon.complexity", reason="radon is not installed; it counts complexity")
    blocks = [(module, block) for module, tree in SOURCES.items() for block in radon.cc_visit_ast(tree)]
    assert len(blocks) > 100
    refuse(
        [
            f"{module}.{block.fullname}: {block.complexity}"
            for module, block in blocks
            if block.complexity > 15
        ]
    )


def test_a_public_name_has_one_home():
    homes = defaultdict(list)
    for module, tree in SOURCES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(module)
    refuse(
        [
            f"{name}: {', '.join(modules)}"
            for name, modules in homes.items()
            if len(modules) > 1 and name != "main"
        ]
    )


def imported(tree):
    """Modules of ours that a module imports anywhere, as (room, name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0], node.module


def may_import(module, room):
    """Whether a module may import from a room (a top-level module or a folder)."""
    own = module.partition(".")[0]
    floor, other = FLOORS.get(own, TOP), FLOORS.get(room, TOP)
    if own == room:
        return True
    if {own, room} == {"compress", "tasks"}:
        return False
    if floor == other == TOP:  # scripts share rooms; bench/ is a part of benchmark.py
        return (own == "benchmark" and room == "bench") or (
            own in ("sweep", "benchmark", "bench") and room == "train"
        )
    return other <= floor


def test_imports_point_down_only():
    upward = [
        f"{module} imports {name}"
        for module, tree in SOURCES.items()
        for room, name in imported(tree)
        if room in ROOMS and not may_import(module, room)
    ]
    refuse(upward)


def test_no_script_names_a_technique():
    names = compress.TECHNIQUES.keys() - {"base"}  # the run that all others are compared with
    assert names
    literals = [
        f"{script}.py:{node.lineno}: {node.value}"
        for script in SCRIPTS
        for node in ast.walk(SOURCES[script])
        if isinstance(node, ast.Constant) and node.value in names
    ]
    refuse(literals)


def names_default(words, default):
    """Whether a help text names a default in brackets: (5), (0 = never), (auto: CUDA, MPS, CPU, ...)."""
    spellings = {str(default), f"{default:g}" if isinstance(default, float) else str(default)}
    shown = "|".join(map(re.escape, spellings))
    return any(
        re.search(rf"(?<![\w.-])({shown})(?![\w.-])", inside) for inside in re.findall(r"\(([^()]*)\)", words)
    )


def test_every_flag_names_its_default():
    parser = arguments.build_parser()
    flags = [
        action
        for action in parser._actions
        if action.option_strings and action.nargs != 0 and action.default is not None
    ]
    expand = parser._get_formatter()._expand_help
    assert len(flags) > 20
    refuse(
        [
            f"{flag.option_strings[0]} ({flag.default}): {expand(flag)}"
            for flag in flags
            if not names_default(expand(flag), flag.default)
        ]
    )
