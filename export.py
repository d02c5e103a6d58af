"""A run directory -> a file for another engine, checked: python export.py RUN_DIR --to openvino

--to onnx       for ONNX Runtime; --int8 is its own dynamic int8
--to openvino   NAME.xml, and NAME.bin beside it; --bf16, or --int8 by NNCF with scales from training notes

Inputs are input_ids and attention_mask, int64 (batch, length), of any batch and length; the output is the
logits of the run's head (with --head logistic, those of the first token). Where the head reads the first
token alone, the last layer answers for no other. The tokenizer stays in the run directory. Without --out the
file goes to RUN_DIR/engines, where predict.py --engine finds it.

Of a run of torch's int8 layers the same weights' values are written, in fp32, or by --int8 rounded again. See
docs/engines.md.
"""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np

from cli import BadInput, Parser, number, run_script
from files import writable_directory
from run import checkpoint, untrusted
from run.engine import LEAST, compare, said_by
from run.forms import FORMS, SMALLER, Files, in_fp32, open_file, parts_of_file, torch_call
from run.inference import Notes, encode_examples
from run.onnx_file import onnx_library, onnx_runtime
from run.openvino_file import nncf_library, openvino_library
from tasks import demo

ENGINE_OF = {"onnx": "onnxruntime", "openvino": "openvino"}


# --- notes to check and to calibrate with ---------------------------------------------------------


def first_notes(task, path, count):
    """The first `count` notes of a file that have text. Raises BadInput if there are none."""
    task.options.row_column = task.options.subject_column = None
    examples = list(itertools.islice(task.unlabelled(path, Counter()), count))
    if not examples:
        raise BadInput(f"{path}: no row with text; give notes to check with")
    return examples


def own_notes(run, directory):
    """({split: the notes of a run}, the file that the validation notes are from)."""
    untrusted.check_types(f"{directory}/run.json", run.facts, {}, untrusted.SPLIT)
    arguments = run.facts["arguments"]
    data, validation, test = (arguments[name] for name in ("data", "validation", "test"))
    if data == "demo":
        data = str(demo.make(Path(directory).parent / "demo", run.task.name)[0])
    for file in (data, validation, test):  # the last two are a file or a share of the first
        if isinstance(file, str) and not Path(file).exists():
            raise BadInput(f"{file}: the run's own notes are not there; name a file of notes with --notes")
    task = type(run.task).from_facts(run.facts["task"])
    task.options.max_row_mb = run.task.options.max_row_mb
    splits, _ = task.load(data, arguments["fraction"], validation, test, arguments["split_seed"])
    return splits, validation if isinstance(validation, str) else data


def notes_to_use(run, args):
    """(notes to check with, notes to calibrate with, the file that the former are from).

    Those of --notes are parted: the first ones check, the ones after them calibrate.
    """
    calibrating = args.calibration_notes if args.precision == "int8" and args.to == "openvino" else 0
    if args.notes:
        examples = first_notes(run.task, args.notes, args.count + calibrating)
        checking, rest = examples[: args.count], examples[args.count :]
        if calibrating and not rest:
            raise BadInput(
                f"{args.notes}: has {len(examples)} notes, none left to calibrate with; give a lower --count"
            )
        return checking, rest, args.notes
    splits, file = own_notes(run, args.run)
    drawn = np.random.default_rng(0).permutation(len(splits["train"]))[:calibrating]
    return splits["validation"][: args.count], [splits["train"][i] for i in drawn], file


def calibration_batches(run, examples):
    """Batches of the notes to calibrate with, of similar length; [] for none."""
    if not examples:
        return []
    notes = Notes(run.task, {}, {"train": encode_examples(run, examples)}, run.tokenizer.pad_token_id)
    return notes.calibration("cpu", 8, 0)(len(examples))


# --- the file -------------------------------------------------------------------------------------


def chosen_form(args):
    """The name of the form to make. Raises BadInput for one that there is not, or without its packages."""
    precision = args.precision
    names = {(form.engine, form.precision): name for name, form in FORMS.items()}
    if (ENGINE_OF[args.to], precision) not in names:
        raise BadInput("--to onnx --bf16: ONNX Runtime multiplies no bf16 on a CPU; use --int8, or openvino")
    onnx_library()
    (onnx_runtime if args.to == "onnx" else openvino_library)()
    if args.to == "openvino" and precision == "int8":
        nncf_library()
    return names[ENGINE_OF[args.to], precision]


def output_file(args):
    """Where the file goes, None for RUN_DIR/engines. Raises BadInput for a directory or a wrong name."""
    if args.out is None:
        return None
    out, ending = Path(args.out), ".xml" if args.to == "openvino" else ".onnx"
    if out.is_dir():
        raise BadInput(f"--out {out}: is a directory; name a file")
    if out.suffix != ending:
        raise BadInput(f"--out {out}: name a file that ends in {ending}")
    writable_directory(out.parent)
    return out


def write_checked(run, args, name, out):
    """Make a form's file, compare its answers with PyTorch's, put it in place. Returns its path.

    Raises BadInput, and writes nothing, if it answers NaN, or in fp32 not as PyTorch does.
    """
    form = FORMS[name]
    checking, calibrating, source = notes_to_use(run, args)
    encoded = encode_examples(run, checking)
    files = Files(run, args.run)
    with files.open(out and out.parent):
        made = files.make(form, calibration_batches(run, calibrating))
        ours = said_by(run, checking, encoded, torch_call(in_fp32(run.model), run.task.reads_first))
        found = compare(ours, said_by(run, checking, encoded, open_file(form, made)))
        print(
            f"{name}: {len(checking)} notes of {source}, largest logit difference from PyTorch in fp32 "
            f"{found.largest:.2g}, same answer {found.same:.2%}"
        )
        if np.isnan(found.largest) or (form.precision == "fp32" and not found.is_rounding()):
            raise BadInput(
                f"{args.run}: {name} and PyTorch differ by {found.largest:.2g}; nothing was written"
            )
        if not found.agrees(form.precision):
            told = "more --calibration-notes may help" if form.precision == "int8" else "look at the notes"
            print(
                f"warning: that is less than the {LEAST[form.precision]:.0%} that --engine asks for; {told}"
            )
        return files.place(form, out)


def build_export_parser():
    """The parser of export.py."""
    parser = Parser(prog="export.py", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run directory, such as results/symptoms/lowrank")
    parser.add_argument("--to", required=True, choices=ENGINE_OF, help="kind of file")
    precision = parser.add_mutually_exclusive_group()
    for name, what in SMALLER.items():
        precision.add_argument(f"--{name}", action="store_const", dest="precision", const=name, help=what)
    parser.set_defaults(precision="fp32")
    parser.add_argument("--out", help="file to write (in RUN_DIR/engines, for predict.py)")
    parser.add_argument("--notes", help="file of notes to check and calibrate with (the run's own)")
    parser.add_argument(
        "--text-columns", "--text-column", help="column of the note there (as the run was trained)"
    )
    parser.add_argument(
        "--count", type=number(int, 1, 10**6), default=64, help="number of notes to check with (64)"
    )
    parser.add_argument(
        "--calibration-notes", type=number(int, 1, 10**6), default=64,
        help="number of training notes that set the scales of OpenVINO's int8 (64)",
    )  # fmt: skip
    parser.add_argument(
        "--max-row-mb",
        type=number(int, 1, 2000),
        help="millions of characters that a row of the notes may have (as the run was trained)",
    )
    return parser


def main(argv=None):
    """Export, check, put in place."""
    args = build_export_parser().parse_args(argv)
    name, out = chosen_form(args), output_file(args)
    run = checkpoint.load(args.run)
    options = run.task.options
    options.max_row_mb = args.max_row_mb or options.max_row_mb
    if args.text_columns and not args.notes:
        raise BadInput("--text-columns: names a column of --notes FILE; the run's own notes have theirs")
    options.text_columns = args.text_columns or options.text_columns
    path = write_checked(run, args, name, out)
    size = sum(part.stat().st_size for part in parts_of_file(path)) / 1e6
    print(
        f"{path}: {size:.1f} MB, inputs input_ids and attention_mask (batch, length); tokenizer in {args.run}"
    )
    if hasattr(run.model, "crf"):
        print("note: the logits are those before the CRF; its transitions are not in the file")


if __name__ == "__main__":
    run_script(main)
