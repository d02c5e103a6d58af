"""The published experiments: their files of arguments, and the converters of public data."""

import csv
import gzip
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import benchmark
import sweep
import train
from cli import BadInput, Parser
from conftest import read_csv
from experiments import prepare, trainer
from files import read_json
from run import arguments
from run.results import read_table

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "experiments").glob("*.args"))


# --- @file ----------------------------------------------------------------------------------------


def test_at_file_takes_quotes_comments_and_blank_lines(tmp_path):
    parser = Parser(prog="x.py")
    parser.add_argument("--name")
    parser.add_argument("--count", type=int)
    (tmp_path / "a.args").write_text("# a comment\n\n--name 'two words'  # and why\n--count\n3\n")
    args = parser.parse_args([f"@{tmp_path}/a.args"])
    assert (args.name, args.count) == ("two words", 3)
    assert parser.parse_args([f"@{tmp_path}/a.args", "--count", "4"]).count == 4  # what comes later counts


def test_at_file_refusals_are_one_line(tmp_path, refuses):
    (tmp_path / "a.args").write_text("--task 'symptoms\n")
    assert "none.args" in refuses(train.main, ["@none.args"])
    assert "quote" in refuses(train.main, [f"@{tmp_path}/a.args"])


# --- the files of arguments -----------------------------------------------------------------------


def command(path):
    """The command in the comments at the top of a file of arguments."""
    found = re.findall(r"^#     (.+)$", path.read_text(encoding="utf-8"), re.M)
    assert len(found) == 1, path
    return found[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_arguments_parse_with_the_script_they_name(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words, given = command(path), [f"@experiments/{path.name}"]
    script = re.search(r"\w+\.(py|sh)", words).group()
    assert (ROOT / script).is_file() and f"experiments/{path.name}" in words
    if script == "sweep.py":
        out = sweep.plan_sweep(given).out
    elif script == "benchmark.py":
        seen = []
        monkeypatch.setattr(benchmark, "measure_parts", seen.append)
        benchmark.main(given)
        out = Path(seen[0].out)
        for call in seen[0].training or ():
            assert arguments.parse_arguments(call).model == "models/minilm"
    else:
        out = Path(arguments.parse_arguments(given).out)
    assert out == Path("results", "mimic" if path.stem == "paper" else path.stem)


def test_data_described():
    text = (ROOT / "experiments/data.md").read_text(encoding="utf-8")
    used = {word for path in FILES for word in re.findall(r"(?:corpora|models)/[\w./]+", path.read_text())}
    assert used and all(path in text for path in used), used
    assert all(f"experiments.prepare {name} " in text for name in prepare.CONVERTERS)
    assert all(f"{path.stem}.args" in text for path in FILES)


# --- converters (made-up rows in the sources' formats) ---------------------------------------------


def test_mtsamples_gives_a_text_one_subject(tmp_path):
    (tmp_path / "in.csv").write_text(
        ",description,medical_specialty,sample_name,transcription,keywords\n"
        '0, Cough., Allergy , Cough - 1 ,"SUBJECTIVE:,  Coughs.","cough,"\n'
        '1, Fever., General , Fever ,"Fever, no cough.",\n'
        "2, Nothing., General , Empty ,,\n"
        '3, Cough., General , Cough - 1 ,"SUBJECTIVE: , Coughs.",\n'
    )
    prepare.main(["mtsamples", str(tmp_path / "in.csv"), str(tmp_path / "out.csv.gz")])
    with gzip.open(tmp_path / "out.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["ROW_ID"], row["SUBJECT_ID"]) for row in rows] == [("1", "1"), ("2", "2"), ("4", "1")]
    assert (rows[0]["CATEGORY"], rows[0]["DESCRIPTION"]) == ("Allergy", "Cough - 1")
    assert rows[0]["TEXT"] == "SUBJECTIVE:,  Coughs."


def test_stop_reasons_are_cleaned_and_shifted_rows_found(tmp_path):
    rows = [
        "stop_reason|phase|nct_id|start_date|status|last_update_posted_date|completion_date|prediction|||",
        '"Too slow;   no  sites"|nan|NCT00000001|nan|Terminated|1.02.2019|nan|Logistics_Resources|||',
        "Funding|ended|Phase 2|NCT00000002|1.02.2019|Withdrawn|1.02.2019|nan|Business_Administrative||",
        "No number|nan||1.02.2019|Terminated|1.02.2019|nan|Negative|||",
        "No label|nan|NCT00000003|1.02.2019|Terminated|1.02.2019|nan|nan|||",
    ]
    (tmp_path / "in.tsv").write_text("\n".join(rows).replace("|", "\t"))
    prepare.main(["stop_reasons", str(tmp_path / "in.tsv"), str(tmp_path / "out.csv")])
    assert [tuple(row.values()) for row in read_csv(tmp_path / "out.csv")] == [
        ("Too slow; no sites", "NCT00000001", "", "Terminated", "Logistics_Resources"),
        ("Funding ended", "NCT00000002", "Phase 2", "Withdrawn", "Business_Administrative"),
    ]


def test_maccrobat_bio_and_split(tmp_path):
    text = "A 20-year-old man coughs.\nHe is afebrile (38.5C).\n"
    (tmp_path / "000.ann").write_text(
        "T1\tAge 2 13\t20-year-old\nE1\tAge:T1 \nT2\tHistory 2 17\t20-year-old man\n"  # of the two the longer
        "T3\tSign_symptom 18 24;29 31\tcoughs is\n"  # discontinuous
        "T4\tSign_symptom 33 38\tfebri\nT5\tLab_value 43 47\t38.5\n#1\tAnnotatorNotes T5\tnote\n"
    )
    (tmp_path / "000.txt").write_text(text)
    made = prepare.bio_lines(text, prepare.brat_entities(tmp_path / "000.ann"))
    assert "|".join(made).replace("\t", " ") == (
        "A O|20 B-History|- I-History|year I-History|- I-History|old I-History|man I-History|coughs O|. O||"
        "He O|is O|afebrile B-Sign_symptom|( O|38 B-Lab_value|. I-Lab_value|5C I-Lab_value|) O|. O|"
    )
    for number in range(1, 200):
        (tmp_path / f"{number:03}.txt").write_text("Well.\n")
        (tmp_path / f"{number:03}.ann").write_text("")
    prepare.main(["maccrobat", str(tmp_path), str(tmp_path / "out")])
    order = [f"{number:03}" for number in range(200)]
    random.Random(13).shuffle(order)
    for name, chosen in (("train", order[:140]), ("dev", order[140:160]), ("test", order[160:])):
        made = (tmp_path / f"out/{name}.tsv").read_text()
        assert re.findall(r"^# doc (.+)$", made, re.M) == sorted(chosen)
    assert made.endswith("Well\tO\n.\tO\n\n")


CODES = """admission_type_id,description
1,Emergency
6,NULL
,
discharge_disposition_id,description
1,Discharged to home
19,"Expired at home. Medicaid only, hospice."
,
admission_source_id,description
7, Emergency Room
"""
COLUMNS = (
    "encounter_id,patient_nbr,race,gender,age,weight,admission_type_id,discharge_disposition_id,"
    "admission_source_id,time_in_hospital,payer_code,medical_specialty,num_lab_procedures,num_procedures,"
    "num_medications,number_outpatient,number_emergency,number_inpatient,diag_1,diag_2,diag_3,"
    "number_diagnoses,max_glu_serum,A1Cresult,"
    "metformin,insulin,glyburide-metformin,change,diabetesMed,readmitted\n"
)
ENCOUNTERS = [
    "11,1,?,Female,[30-40),?,1,1,7,2,?,Cardiology,4,1,6,0,0,2,8,250.43,?,7,Norm,>8,Steady,Up,No,Ch,Yes,<30\n",
    "12,2,Other,Male,[90-100),?,6,1,7,2,?,?,4,1,6,0,1,0,8,?,?,1,None,None,No,No,No,No,No,>30\n",
    "13,3,Other,Male,[90-100),?,6,19,7,2,?,?,4,1,6,0,1,0,8,?,?,1,None,None,No,No,No,No,No,NO\n",
]


def test_encounters_as_sentences(tmp_path):
    (tmp_path / "IDs_mapping.csv").write_text(CODES)
    (tmp_path / "diabetic_data.csv").write_text(COLUMNS + "".join(ENCOUNTERS))
    prepare.main(["encounters", str(tmp_path / "diabetic_data.csv"), str(tmp_path / "out.csv")])
    first, second = read_csv(tmp_path / "out.csv")  # who died cannot come back
    assert (first["SUBJECT_ID"], first["HADM_ID"], first["Label"], second["Label"]) == ("1", "11", "1", "0")
    assert first["TEXT"] == (
        "DISCHARGE SUMMARY. Race not recorded female, age 30 to 40 years. Admission type: Emergency. "
        "Admitted from: Emergency Room. Length of stay 2 days. Discharge disposition: Discharged to home. "
        "Service: Cardiology. Diagnoses (ICD-9): 8, 250.43; 7 diagnoses in all. 4 laboratory tests, "
        "1 procedures, 6 medications. In the year before: 0 outpatient, 0 emergency and 2 inpatient visits. "
        "Maximum serum glucose Norm. HbA1c >8. Diabetes medication: metformin steady, "
        "insulin up. Regimen changed."
    )
    assert second["TEXT"].endswith(
        "0 outpatient, 1 emergency and 0 inpatient visits. Diabetes medication: none."
    )
    assert "Admission type: NULL." in second["TEXT"] and "Service" not in second["TEXT"]


def test_encounters_of_drawn_patients_in_the_order_of_the_file(tmp_path):
    (tmp_path / "IDs_mapping.csv").write_text(CODES)
    rows = [ENCOUNTERS[1].replace("12,2,", f"{i},{i % 40},", 1) for i in range(100)]
    (tmp_path / "diabetic_data.csv").write_text(COLUMNS + "".join(rows))
    prepare.encounters(tmp_path / "diabetic_data.csv", tmp_path / "out.csv", patients=10)
    drawn = set(np.random.RandomState(0).permutation(40)[:10])
    kept = [int(row["HADM_ID"]) for row in read_csv(tmp_path / "out.csv")]
    assert kept == [i for i in range(100) if i % 40 in drawn]


def test_trials_from_xml(tmp_path):
    study = """<clinical_study><id_info><nct_id>{}</nct_id></id_info><brief_title>Walking</brief_title>
  <brief_summary>
    <textblock>
      First line&#xD;
      goes on.&#xD;
&#xD;
      Second.&#xD;
    </textblock>
  </brief_summary>
  <condition>Asthma</condition><condition>Cough</condition>
  <intervention>
    <intervention_type>Drug</intervention_type>
    <intervention_name>Salt</intervention_name>
  </intervention>
  <eligibility>{}</eligibility></clinical_study>"""
    for folder, name, sex in (("1", "NCT2", "<gender>Male</gender>"), ("2", "NCT1", "<gender>All</gender>"),
                              ("2", "NCT2", "<gender>Female</gender>"), ("2", "NCT3", "")):  # fmt: skip
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{name}.xml").write_text(study.format(name, sex))
    (tmp_path / "2/NCT4.xml").write_text("<clinical_study>")
    prepare.main(["trials", str(tmp_path), str(tmp_path / "out.csv")])
    rows = read_csv(tmp_path / "out.csv")
    assert [(row["nct_id"], row["gender"]) for row in rows] == [("NCT1", "All"), ("NCT2", "Male")]
    assert rows[0]["brief_summary"] == "First line goes on.\nSecond."
    assert (rows[0]["conditions"], rows[0]["interventions"], rows[0]["phase"]) == (
        "Asthma; Cough",
        "Drug: Salt",
        "",
    )


def test_gzip_is_the_same_bytes_each_time(tmp_path):
    for name in ("a.csv.gz", "b.csv.gz"):
        prepare.write_table(tmp_path / name, ("x",), [("1",)])
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_bad_sources_are_one_line(tmp_path, refuses):
    (tmp_path / "in.csv").write_text("a,b\n1,2\n")
    (tmp_path / "IDs_mapping.csv").write_text(CODES)
    for name, source, message in (
        ("mtsamples", "none.csv", "no such file"),
        ("mtsamples", "in.csv", "no column 'transcription'"),
        ("stop_reasons", "in.csv", "first line"),
        ("maccrobat", ".", "0 .ann files"),
        ("encounters", "in.csv", "no column"),
        ("trials", ".", "no trial"),
        ("mimic", "in.csv", "invalid choice"),
    ):
        assert message in refuses(prepare.main, [name, tmp_path / source, tmp_path / "out.csv"])
    (tmp_path / "IDs_mapping.csv").write_text("admission_type_id,description\n1,Emergency\n")
    assert "no table" in refuses(prepare.main, ["encounters", tmp_path / "in.csv", tmp_path / "out.csv"])
    with pytest.raises(BadInput, match="is a directory"):
        prepare.write_table(tmp_path, ("x",), [])
    assert not (tmp_path / "out.csv").exists()


def test_the_trainer_learns_what_train_py_learns(runs, tmp_path, refuses):
    pytest.importorskip("accelerate")
    shutil.copytree(runs / "base", tmp_path / "sweep/seed1/base")
    trainer.main([str(tmp_path / "sweep"), str(tmp_path / "scores.csv")])
    rows = read_table(tmp_path / "scores.csv")
    assert [(row["training"], row["seed"]) for row in rows] == [
        *(("train.py", "42"), ("Trainer", "42"), ("train.py", "mean"), ("Trainer", "mean"))
    ]
    ours, theirs = rows[:2]
    held = read_json(runs / "base/run.json")["history"][-1]
    assert float(ours["Loss"]) == pytest.approx(held["Loss"], abs=1e-4)
    assert float(theirs["Loss"]) == pytest.approx(held["Loss"], abs=0.2)
    assert {**rows[2], "seed": "42"} == ours and {**rows[3], "seed": "42"} == theirs
    assert "usage" in refuses(trainer.main, []) and "holds no seed1" in refuses(trainer.main, [str(tmp_path)])
