"""The other tasks: their maths against references, their readers, and whole runs of each with several techniques."""

import functools
import gzip
import io
import itertools
import json
import sys
from collections import Counter
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from seqeval.metrics import v1
from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support
from seqeval.scheme import IOB2, Entities
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

import benchmark
import compress
import files
import metrics
import predict
import report
import train
from compress.lora import LoRA, LoRALinear, head_modules
from conftest import read_csv
from data import IGNORE, SPLITS, collate, windows
from run import arguments, checkpoint, inference
from tasks import TASKS, demo
from tasks.admissions import readmitted
from tasks.bio import CRF, allowed, marginals, read_bio, repair, viterbi
from tasks.mlm import Mlm
from tasks.ner import Ner
from tasks.readmission import Readmission, combine_chunks
from tasks.trials import Trials, best_thresholds

NEW = ("ner", "readmission", "mlm", "trials")
TECHNIQUES = {
    "ner": ("base", "lora", "pruning", "distillation+quantization"),
    "readmission": ("base", "lowrank", "distillation+lora", "quantization"),
    "mlm": ("base", "lora", "lowrank", "distillation", "quantization"),
    "trials": ("base", "lora+quantization", "distillation+lowrank"),
}


@pytest.fixture(scope="session")
def demos(tmp_path_factory):
    """{task: (data, model)} of small demonstrations."""
    return {
        task: demo.make(tmp_path_factory.mktemp(task), task, notes=400, hidden=32, layers=2) for task in NEW
    }


def call(demos, task, out, *words):
    data, model = demos[task]
    return ["--task", task, "--data", str(data), "--model", str(model), "--out", str(out), "--lr", "2e-3", "--epochs", "2",
            *(["--block-size", "32"] if task == "mlm" else ["--max-length", "64"]), "--rank", "4", *map(str, words)]  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory, demos):
    """{task: results directory} with several techniques each."""
    outs = {task: tmp_path_factory.mktemp(f"{task}-runs") for task in NEW}
    for task, out in outs.items():
        for technique in TECHNIQUES[task]:
            train.main(
                call(demos, task, out, "--technique", technique, *(["--epochs", 8] if task == "ner" else []))
            )
    return outs


def splits_of(run, path):
    facts = run.facts["arguments"]
    return run.task.load(
        str(path), facts["fraction"], facts["validation"], facts["test"], facts["split_seed"]
    )[0]


# --- metrics against the reference libraries


@pytest.mark.parametrize("seed", range(6))
def test_binary_scores_equal_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, 200)
    probability = np.clip(generator.normal(0.4 + 0.2 * labels, 0.2), 0, 1).round(
        2 if seed % 2 else 6
    )  # with ties
    ours = metrics.binary(labels, probability, ["no", "yes"], intervals=True)
    precision, recall, _ = sk.precision_recall_curve(labels, probability)
    expected = {
        "Accuracy": sk.accuracy_score(labels, probability > 0.5), "Majority": max(labels.mean(), 1 - labels.mean()),
        "AUROC": sk.roc_auc_score(labels, probability), "AUPRC": sk.average_precision_score(labels, probability),
        "RecallAtP80": recall[precision >= 0.8].max(), "Brier": sk.brier_score_loss(labels, probability),
        "F1": sk.f1_score(labels, probability > 0.5),
    }  # fmt: skip
    for name, value in expected.items():
        assert ours.overall[name] == pytest.approx(value, abs=1e-12), name
    edges = itertools.pairwise(np.linspace(0, 1, 11))  # a bin includes its upper edge, the first also 0
    bins = [(probability <= high) & ((probability > low) | (low == 0)) for low, high in edges]
    gaps = [abs(probability[b].mean() - labels[b].mean()) * b.mean() for b in bins if b.any()]
    assert ours.overall["ECE"] == pytest.approx(sum(gaps))
    for name, (low, high) in ours.intervals.items():
        assert low < ours.overall[name] < high
    assert metrics.average_precision(np.zeros(3, bool), np.arange(3.0)) is None
    assert metrics.recall_at_precision(np.array([False, True]), np.array([0.9, 0.1])) == 0.0


@pytest.mark.parametrize("seed", range(6))
def test_classification_report_equals_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    names = [f"label {i}" for i in range(5)]
    truth, called = generator.random((2, 60, 5)) < [0.5, 0.3, 0.1, 0.05, 0.0 if seed % 2 else 0.02]
    theirs = sk.classification_report(truth, called, target_names=names, output_dict=True, zero_division=0)
    ours = metrics.classification_report(truth, called, names)
    assert list(ours) == list(theirs)
    for name, row in ours.items():
        for score, key in (
            ("Precision", "precision"),
            ("Recall", "recall"),
            ("F1", "f1-score"),
            ("Support", "support"),
        ):
            assert (row[score] or 0.0) == pytest.approx(theirs[name][key]), (name, score)
    scores = metrics.multi_label(truth, called, names, intervals=True)
    assert scores.overall["Accuracy"] == pytest.approx(sk.accuracy_score(truth, called))
    assert scores.overall["MicroF1"] == pytest.approx(sk.f1_score(truth, called, average="micro"))
    assert scores.intervals["MicroF1"][0] < scores.overall["MicroF1"] < scores.intervals["MicroF1"][1]
    if seed % 2:
        assert scores.per_label["label 4"]["Recall"] is None  # never true: undefined, not 0


def random_tags(generator, lengths, tags=("O", "B-x", "I-x", "B-y", "I-y")):
    return [[str(tag) for tag in generator.choice(tags, length)] for length in lengths]


@pytest.mark.parametrize("seed", range(20))
def test_spans_and_their_scores_equal_seqeval_in_both_modes(seed):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 9, 40)
    truth, called = random_tags(generator, lengths), random_tags(generator, lengths)
    for tags in truth + called:
        assert metrics.spans(tags) == [(a, b + 1, kind) for kind, a, b in get_entities(tags)]
        strict = [(e.start, e.end, e.tag) for e in Entities([tags], scheme=IOB2).entities[0]]
        assert metrics.spans(tags, strict=True) == strict
    for strict in (False, True):
        reference = (
            functools.partial(v1.precision_recall_fscore_support, scheme=IOB2)
            if strict
            else precision_recall_fscore_support
        )
        ours = metrics.span_scores(
            [metrics.spans(t, strict) for t in truth],
            [metrics.spans(t, strict) for t in called],
            ["x", "y"],
            range(40),
            True,
        )
        theirs = reference(truth, called, average="micro", zero_division=0)
        assert [ours.overall[name] for name in metrics.SPANS] == pytest.approx(list(theirs[:3]))
        per_type = np.array(reference(truth, called, average=None, zero_division=0))
        assert np.allclose(
            [[ours.per_label[kind][name] for name in (*metrics.SPANS, "Support")] for kind in "xy"],
            per_type.T,
        )
        assert ours.intervals["F1"][0] <= ours.overall["F1"] <= ours.intervals["F1"][1]


def test_masked_token_scores_are_sums_over_rows():
    counts = np.array([[1, 2, 3.0], [0, 1, 2.0], [3, 3, 1.0]])
    scores = metrics.masked_tokens(counts, intervals=True)
    assert scores.overall == {"Accuracy": 4 / 6, "CrossEntropy": 1.0, "Perplexity": pytest.approx(np.e)}


# --- named entities


@pytest.mark.parametrize("seed", range(5))
def test_crf_and_viterbi_and_marginals_equal_enumeration(seed):
    torch.manual_seed(seed)
    labels = ["O", "B-x", "I-x", "B-y", "I-y"]
    crf = CRF(labels)
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter, std=0.01)
    lengths, emissions = (4, 1, 3), torch.randn(3, 4, 5)
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    start, transitions = (x.detach().double().numpy() for x in crf.scores())
    first, after = allowed(labels)
    for row, length in enumerate(lengths):
        e = emissions[row, :length].double().numpy()
        paths = list(itertools.product(range(5), repeat=length))
        score = np.array(
            [
                start[p[0]] + e[range(length), p].sum() + sum(transitions[a, b] for a, b in zip(p, p[1:]))
                for p in paths
            ]
        )
        likelihood = score - np.logaddexp.reduce(score)
        legal = [first[p[0]] and all(after[a, b] for a, b in zip(p, p[1:])) for p in paths]
        assert np.exp(likelihood[legal]).sum() == pytest.approx(1)  # what is forbidden has no probability
        best = paths[int(score.argmax())]
        assert tuple(viterbi(e, start, transitions)) == best and legal[int(score.argmax())]
        expected = np.zeros((length, 5))
        for path, p in zip(paths, np.exp(likelihood)):
            expected[range(length), path] += p
        assert np.allclose(marginals(e, start, transitions), expected, atol=1e-6)
        for path in (paths[i] for i in np.flatnonzero(legal)[::7]):
            tags = torch.zeros(3, 4, dtype=torch.long)
            tags[row, :length] = torch.tensor(path)
            ours = crf.log_likelihood(emissions, tags, mask)[row]
            assert float(ours.detach()) == pytest.approx(likelihood[paths.index(path)], abs=1e-3)


def test_crf_windows_that_begin_inside_an_entity_cost_no_fortune(demos):
    task = Ner(crf=True)
    task.labels = ["O", "B-x", "I-x"]
    tokenizer = AutoTokenizer.from_pretrained(demos["ner"][1])
    sentence = task.example("1", "irregular periods " * 20)
    sentence.label = [1] + [2] * 39
    encoded = task.encode([sentence, task.example("2", "low")], tokenizer, 24, progress=False)
    assert len(encoded.lengths) > 2
    batch = collate(encoded, np.arange(len(encoded.lengths)), tokenizer.pad_token_id)
    model = task.attach_head(torch.nn.Module())
    logits = torch.zeros(*batch["labels"].shape, 3)
    loss = task.loss(model, batch, SimpleNamespace(logits=logits))
    assert 0 < float(loss.detach()) < np.log(3) + 1e-6
    assert (
        float(
            task.loss(
                model,
                {"labels": torch.full((2, 5), IGNORE)},
                SimpleNamespace(logits=torch.zeros(2, 5, 3, requires_grad=True)),
            )
        )
        == 0
    )


def test_words_of_byte_level_tokenizers_keep_the_blank_before_them(tmp_path):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizerFast

    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        ["low estrogen and low iron"] * 9,
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )
    trainer.save_model(str(tmp_path))
    tokenizer = RobertaTokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    task = Ner()
    encoded = task.encode([task.example("1", "and low iron")], tokenizer, 32, progress=False)
    assert encoded.ids.tolist() == tokenizer(" and low iron")["input_ids"]


def test_decoding_never_emits_an_impossible_transition():
    generator, labels = np.random.default_rng(0), ["O", "B-x", "I-x", "B-y", "I-y"]
    start, after = (np.where(ok, 0.0, -1e4) for ok in allowed(labels))
    greedy_breaks = 0
    for _ in range(200):
        scores = generator.normal(size=(6, 5))
        tags = [labels[i] for i in viterbi(scores, start, after)]
        assert repair(tags)[1] == 0 and metrics.spans(tags) == metrics.spans(tags, strict=True)
        greedy_breaks += repair([labels[i] for i in scores.argmax(1)])[1] > 0
    assert greedy_breaks > 100


def test_bio_files_of_all_sorts_are_read(tmp_path, capsys):
    path = tmp_path / "a.tsv"
    path.write_text(
        "-DOCSTART- -X- O O\n\nEU NNP O B-ORG\nrejects VB O O\r\n\n\nPeter NNP O I-PER\nBlackburn NNP O I-PER\n# NN O O\n\n-DOCSTART- -X- O O\n\nx NN O I-ORG\n"
    )
    read = list(read_bio(path))
    assert [(line, document, words) for line, document, words, _ in read] == [
        (3, "document 1", ["EU", "rejects"]), (7, "document 1", ["Peter", "Blackburn", "#"]), (13, "document 2", ["x"])]  # fmt: skip
    assert repair(read[1][3]) == (["B-PER", "I-PER", "O"], 1)
    assert repair(["I-a", "B-a", "I-b", "I-b", "O", "B-b", "I-b"]) == (
        ["B-a", "B-a", "B-b", "I-b", "O", "B-b", "I-b"],
        2,
    )
    lines = "".join(f"# doc {d}\nw{d}\tI-x\nv\tI-x\n\n" for d in range(12)) + "# doc 13\nz\tI-y\n"
    path.write_text(lines)
    task = Ner()
    splits, facts = task.load(str(path), 1.0, 0.2, 0.2, 1)
    assert (
        facts["rows"]["IOB1 tags read as BIO"] == 13
        and facts["subjects"] == 13
        and task.labels == ["O", "B-x", "I-x", "B-y", "I-y"]
    )
    path.write_text(
        "# newdoc id = 1\n# sent_id = 1\n# text = w v\nw\tO\nv\tB-x\n\n# sent_id = 2\nw\tO\n\n# newdoc id = 2\n# sent_id = 3\nz\tB-x\n"
    )
    assert [document for _, document, _, _ in read_bio(path)] == ["1", "1", "2"]
    path.write_text("# doc\na\tO\n\nb\tO\n\n# doc\nc\tB-x\n")
    assert [document for _, document, _, _ in read_bio(path)] == ["document 1", "document 1", "document 2"]
    zipped = tmp_path / "a.tsv.gz"
    zipped.write_bytes(gzip.compress(lines.encode()))
    path.write_text(lines)
    assert list(read_bio(zipped)) == list(read_bio(path))
    capsys.readouterr()
    Ner().load(str(path), 1.0, 0.2, str(zipped), 1)
    assert "texts of train stand in validation or test, too" in capsys.readouterr().out
    task = Ner(entity_types="x,x")
    splits, facts = task.load(str(path), 1.0, 0.2, 0.2, 1)
    assert (
        task.labels == ["O", "B-x", "I-x"]
        and sum(map(sum, (s["splits"].values() for s in [{"splits": t} for t in facts["splits"].values()])))
        == 12
    )


def test_windows_cover_and_every_word_is_answered_once(demos):
    for length, size, overlap in itertools.product((1, 9, 10, 11, 47, 200), (10, 16), (0, 2, 5)):
        spans = windows(length, size, overlap)
        assert spans[0][0] == 0 and spans[-1][1] == length and all(b - a <= size for a, b in spans)
        assert all(left[1] - right[0] >= overlap for left, right in zip(spans, spans[1:]))
    tokenizer = AutoTokenizer.from_pretrained(demos["ner"][1])
    task = Ner()
    task.labels = ["O", "B-x", "I-x"]
    text = "irregular periods " * 40 + "\u200b unpronounceablewordofmanypieces " + "x " * 30
    sentences = [task.example("1", text), task.example("2", "low estrogen"), task.example("3", "")]
    sentences[0].words.insert(5, "\u200b")  # a word that leaves no piece
    sentences[0].offsets.insert(5, (0, 0))
    encoded = task.encode(sentences, tokenizer, 32, progress=False)
    assert encoded.lengths.max() <= 32 and (encoded.token_labels != IGNORE).sum() == sum(
        len(s.words) for s in sentences
    )
    torch.manual_seed(0)
    model = task.auto_class.from_pretrained(
        demos["ner"][1], num_labels=3, ignore_mismatched_sizes=True
    ).eval()
    predictions = task.combine(
        sentences, encoded, inference.predict_rows(model, task, encoded, tokenizer.pad_token_id, 4)
    )
    assert [len(tags) for tags, *_ in predictions] == [len(s.words) for s in sentences]
    whole = task.encode(sentences, tokenizer, 256, progress=False)
    assert len(whole.lengths) == 3 < len(encoded.lengths)
    pieces = tokenizer(sentences[1].words, is_split_into_words=True)["input_ids"]
    assert whole.ids[whole.starts[1] : whole.starts[2]].tolist() == pieces


# --- readmission


def stay(number, begin, days, kind="EMERGENCY", died=False):
    start = datetime(2150, 1, 1) + timedelta(days=begin)
    return {
        "id": str(number),
        "begin": start,
        "end": start + timedelta(days=days),
        "kind": kind,
        "died": died,
    }


def test_readmission_labels_follow_the_literature():
    stays = [stay(1, 0, 5), stay(2, 7, 2, "ELECTIVE"), stay(3, 12, 1), stay(4, 14.5, 3, died=True)]
    labels, counts = readmitted(stays, 3)
    assert (
        labels == {"1": 0, "2": 1, "3": 1}
        and counts["planned readmissions looked past"] == 1
        and counts["died in hospital"] == 1
    )
    assert readmitted(stays, 30)[0] == {
        "1": 1,
        "2": 1,
        "3": 1,
    }  # past the planned stay, the unplanned one counts
    labels, counts = readmitted([stay(1, 0, 5, "NEWBORN"), stay(2, 6, 4), stay(3, 8, 9), stay(4, 20, 1)], 3)
    assert (
        labels == {"2": 0, "3": 1, "4": 0}
        and counts["newborn"] == 1
        and counts["overlapping next stays looked past"] == 1
    )
    assert readmitted([stay(1, 0, 1), stay(2, 4, 1)], 3)[0]["1"] == 1  # exactly three days count
    assert readmitted([stay(1, 0, 1), stay(2, 4.01, 1)], 3)[0]["1"] == 0


def test_mimic_tables_are_joined_and_every_row_is_accounted_for(tmp_path):
    rows = [
        f"{i},{10 + i // 3},{100 + i},2150-0{1 + i % 3}-0{1 + i % 7} 10:00:00,2150-0{1 + i % 3}-0{2 + i % 7} 10:00:00,,EMERGENCY,0"
        for i in range(60)
    ]
    rows[1] = rows[1].replace("2150-02-0", "2150-01-0")  # back soon after the first
    header = "row_id,subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,hospital_expire_flag\n"
    (tmp_path / "ADMISSIONS.csv").write_text(header + "\n".join(rows) + "\n")
    notes = ["ROW_ID,SUBJECT_ID,HADM_ID,CATEGORY,TEXT"] + [
        f"{i},{10 + i // 3},{100 + i},Discharge summary,note {i}" for i in range(59)
    ]
    notes += [
        "90,10,100.0,discharge summary,ADDENDUM",
        "91,10,100,Nursing,x",
        "92,10,,Discharge summary,y",
        "93,10,100,Discharge summary,  ",
    ]
    (tmp_path / "NOTEEVENTS.csv").write_text("\n".join(notes) + "\n")
    task, counts = Readmission(), Counter()
    found = task.read(str(tmp_path / "NOTEEVENTS.csv"), lambda row: True, counts)
    assert len(found) == 59 and found[0].text == "note 0 ADDENDUM" and found[0].subject == "10"
    assert (
        counts["rows"]
        == 63
        == 60
        + counts["of another category"]
        + counts["of no admission in the table"]
        + counts["without text"]
    )
    assert counts["addenda joined"] == 1 and counts["admissions without a note"] == 1


def test_chunk_probabilities_combine_as_huang_wrote():
    p = np.array([0.1, 0.2, 0.9])
    assert combine_chunks(p, "mean", 2.0) == pytest.approx(0.4) and combine_chunks(p, "max", 2.0) == 0.9
    assert combine_chunks(p, "huang", 2.0) == pytest.approx((0.9 + 0.4 * 3 / 2) / (1 + 3 / 2))
    assert combine_chunks(p[:1], "huang", 2.0) == pytest.approx(0.1)


def test_logistic_head_is_scikit_learns_and_patients_stay_together(demos, tmp_path, capsys):
    train.main(call(demos, "readmission", tmp_path, "--head", "logistic", "--epochs", "0"))
    assert "[CLS] vectors of" in capsys.readouterr().out
    run = checkpoint.load(tmp_path / "base")
    splits = splits_of(run, demos["readmission"][0])
    subjects = [{note.subject for note in splits[split]} for split in SPLITS]
    assert not (subjects[0] & subjects[1] or subjects[0] & subjects[2] or subjects[1] & subjects[2])
    encoded = {s: run.task.encode(splits[s], run.tokenizer, 64, progress=False) for s in ("train", "test")}
    assert len(encoded["test"].lengths) > len(splits["test"])  # chunks
    x = {s: run.task._cls_vectors(run.model, e, run.tokenizer.pad_token_id) for s, e in encoded.items()}
    mean, scale = x["train"].mean(0), x["train"].std(0)
    c = float(run.facts["head"]["C"])
    fit = LogisticRegression(C=c, max_iter=1000).fit((x["train"] - mean) / scale, encoded["train"].labels)
    theirs = fit.predict_proba((x["test"] - mean) / scale)[:, 1]
    ours = np.array(inference.predict_rows(run.model, run.task, encoded["test"], run.tokenizer.pad_token_id))
    assert np.allclose(ours, theirs, atol=2e-3)  # float32 sums of standardised against raw vectors
    assert np.ptp(ours) > 0.01  # the last layer differs from note to note
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    batch = collate(encoded["test"], np.arange(4), run.tokenizer.pad_token_id)
    layer0 = plain.base_model(
        batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
    ).hidden_states[0][:, 0]
    assert layer0.std(0).max() < 1e-6  # what the reference took is the same for every note


# --- masked language model


def test_masks_are_15_percent_80_10_10_and_new_each_epoch(demos):
    task, tokenizer = Mlm(), AutoTokenizer.from_pretrained(demos["mlm"][1])
    splits, _ = task.load(str(demos["mlm"][0]), 1.0, 0.1, 0.2, 42)
    examples = splits["train"] * 3
    first = task.encode(examples, tokenizer, 32, progress=False)
    original = np.where(first.token_labels == IGNORE, first.ids, first.token_labels)
    special = np.isin(original, tokenizer.all_special_ids)
    epochs = [task.fresh(first, [42, epoch]) for epoch in (0, 1)]
    for encoded in (first, *epochs):
        chosen = encoded.token_labels != IGNORE
        assert not (chosen & special).any() and abs(chosen[~special].mean() - 0.15) < 0.01
        assert (np.where(chosen, encoded.token_labels, encoded.ids) == original).all()
        shares = [
            (encoded.ids[chosen] == tokenizer.mask_token_id).mean(),
            (encoded.ids[chosen] == original[chosen]).mean(),
        ]
        assert abs(shares[0] - 0.8) < 0.02 and abs(shares[1] - 0.1) < 0.02
    assert (epochs[0].token_labels != epochs[1].token_labels).any()
    assert (task.fresh(epochs[1], [42, 0]).ids == epochs[0].ids).all()
    assert (
        task.encode(examples, tokenizer, 32, progress=False).ids == first.ids
    ).all()  # held-out masks are fixed
    lengths = set(first.lengths[:-1].tolist())
    assert lengths == {32} and tokenizer.convert_ids_to_tokens(original[[0, 31]]) == ["[CLS]", "[SEP]"]


def test_only_masked_places_go_through_the_head(demos):
    torch.manual_seed(0)
    task, tokenizer = Mlm(), AutoTokenizer.from_pretrained(demos["mlm"][1])
    model = AutoModelForMaskedLM.from_pretrained(demos["mlm"][1]).eval()
    splits, _ = task.load(str(demos["mlm"][0]), 1.0, 0.1, 0.2, 42)
    encoded = task.encode(splits["test"], tokenizer, 32, progress=False)
    batch = collate(encoded, np.arange(8), tokenizer.pad_token_id)
    outputs, whole = (
        task.forward(model, batch),
        model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits,
    )
    chosen = batch["labels"] != IGNORE
    assert torch.allclose(outputs.logits, whole[chosen], atol=1e-6)
    loss = torch.nn.functional.cross_entropy(
        whole.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE
    )
    assert torch.allclose(task.loss(model, batch, outputs), loss)
    with torch.no_grad():
        counts = task.read_out(model, batch, task.forward(model, batch))
    assert sum(c[1] for c in counts) == chosen.sum() and sum(
        c[2] for c in counts
    ) / chosen.sum() == pytest.approx(float(loss.detach()), rel=1e-5)
    assert sum(c[0] for c in counts) == (whole.argmax(-1)[chosen] == batch["labels"][chosen]).sum()


# --- trials


def table(path, header, rows):
    path.write_text("\n".join([",".join(header), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def test_label_sets_come_from_columns_separators_or_folded_texts(tmp_path):
    sets = [("a",), ("a", "b"), (), ("c",)]
    columns = table(
        tmp_path / "columns.csv",
        ("context", "a", "b", "c"),
        [(f"text {i}", *(int(n in sets[i % 4]) for n in "abc")) for i in range(40)],
    )
    separated = table(
        tmp_path / "separated.csv",
        ("context", "label"),
        [(f"text {i}", ";".join(sets[i % 4])) for i in range(40)],
    )
    for path, task in ((columns, Trials(label_column="a,b,c")), (separated, Trials(label_separator=";"))):
        splits, facts = task.load(path, 1.0, 0.2, 0.2, 1)
        assert (
            task.labels == ["a", "b", "c"]
            and facts["rows"]["with an empty set of labels"] == 10
            and facts["notes"] == 40
        )
        for note in sum(splits.values(), []):
            assert tuple(task.labels[i] for i in note.label) == sets[int(note.text.split()[1]) % 4]
        targets = task.targets(splits["test"])
        assert targets.shape == (len(splits["test"]), 3) and targets.dtype == np.float32
    folded = table(
        tmp_path / "folded.csv",
        ("context", "label"),
        [(f"text {i // 2}", "ab"[i % 2] if i % 4 < 2 else "c") for i in range(80)],
    )
    task = Trials(multi_label=True)
    splits, facts = task.load(folded, 1.0, 0.2, 0.2, 1)
    assert facts["notes"] == 40 and facts["rows"]["duplicates with other labels, united"] == 20
    assert {(int(n.text.split()[1]) % 2, n.label) for n in sum(splits.values(), [])} == {
        (0, (0, 1)),
        (1, (2,)),
    }
    splits, facts = Trials().load(folded, 1.0, 0.2, 0.2, 1)
    assert facts["rows"]["contradicting duplicates"] == 20


def test_a_class_too_rare_for_validation_does_not_decide_the_epoch(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(60)] + [("rare", "c")]
    task = Trials()
    splits, _ = task.load(table(tmp_path / "rare.csv", ("context", "label"), rows), 1.0, 0.2, 0.2, 1)
    examples = [note for note in splits["validation"] if note.label < 2]
    right = np.eye(3)[[note.label for note in examples]]
    assert task.score(examples, list(right), intervals=True).intervals["F1"][1] == pytest.approx(2 / 3)
    good, bad = (
        task.score(examples, list(right)).overall,
        task.score(examples, list(np.roll(right, 1, 1))).overall,
    )
    assert good["F1"] == pytest.approx(2 / 3) and task.better(good, bad) and not task.better(bad, good)


def test_thresholds_are_the_best_of_all_on_validation_and_never_see_the_test():
    generator = np.random.default_rng(0)
    truth = generator.random((80, 3)) < [0.5, 0.2, 0.0]
    said = np.clip(generator.normal(0.3 + 0.3 * truth, 0.2), 0, 1)
    chosen = best_thresholds(truth, said)
    for i in (0, 1):
        best = max(sk.f1_score(truth[:, i], said[:, i] >= t) for t in np.unique(said[:, i]))
        assert sk.f1_score(truth[:, i], said[:, i] >= chosen[i]) == pytest.approx(best)
    assert chosen[2] == 0.5


def test_multi_label_logits_distil_as_softmaxes_of_two():
    task = Trials(multi_label=True)
    logits = torch.randn(4, 3)
    rows = task.categorical(logits, {})
    assert rows.shape == (12, 2) and torch.allclose(rows.softmax(-1)[:, 1].view(4, 3), logits.sigmoid())


# --- LoRA against peft


@pytest.mark.parametrize("rank, alpha", [(1, 1.0), (4, 16.0)])
def test_lora_outputs_and_gradients_equal_peft(rank, alpha):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=3,
    )
    original = BertForSequenceClassification(config).eval()
    ids, labels = torch.randint(5, 50, (4, 9)), torch.tensor([0, 1, 2, 0])
    ours, theirs = BertForSequenceClassification(config).eval(), BertForSequenceClassification(config).eval()
    for copy in (ours, theirs):
        copy.load_state_dict(original.state_dict())
    technique = LoRA(lora_rank=rank, lora_alpha=alpha, lora_targets="query,value", source="x")
    ours = technique.prepare(ours).eval()
    theirs = get_peft_model(
        theirs,
        LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=["query", "value"], modules_to_save=["classifier"]
        ),
    ).eval()
    assert torch.equal(ours(ids).logits, original(ids).logits)  # B = 0: training starts from the model itself
    for name, module in ours.named_modules():
        if isinstance(module, LoRALinear):
            torch.nn.init.normal_(module.lora_B.weight)
            other = theirs.base_model.model.get_submodule(name)
            other.lora_A["default"].weight.data.copy_(module.lora_A.weight)
            other.lora_B["default"].weight.data.copy_(module.lora_B.weight)
    outputs = [model(ids).logits for model in (ours, theirs)]
    assert torch.allclose(*outputs, atol=1e-5)
    for logits in outputs:
        torch.nn.functional.cross_entropy(logits, labels).backward()
    trained = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in ours.named_parameters() if p.grad is not None}
    assert sum(p.numel() for p in ours.parameters() if p.requires_grad) == sum(
        p.numel() for p in theirs.parameters() if p.requires_grad
    )
    for name, module in ours.named_modules():
        if isinstance(module, LoRALinear):
            other = theirs.base_model.model.get_submodule(name)
            assert torch.allclose(module.lora_A.weight.grad, other.lora_A["default"].weight.grad, atol=1e-5)
            assert torch.allclose(module.lora_B.weight.grad, other.lora_B["default"].weight.grad, atol=1e-5)
    merged = technique.finish(ours)
    assert torch.allclose(merged(ids).logits, outputs[0], atol=1e-5)
    assert merged.state_dict().keys() == original.state_dict().keys()


def test_adapters_load_in_peft_and_give_the_same_logits(trained, demos, tmp_path):
    ids = torch.arange(5, 25).view(2, 10)
    ours = checkpoint.load(trained["mlm"] / "lora")
    base = AutoModelForMaskedLM.from_pretrained(demos["mlm"][1])
    theirs = PeftModel.from_pretrained(base, trained["mlm"] / "lora" / "adapter").eval()
    assert torch.allclose(theirs(ids).logits, ours.model(ids).logits, atol=1e-5)
    assert not torch.allclose(
        AutoModelForMaskedLM.from_pretrained(demos["mlm"][1]).eval()(ids).logits,
        ours.model(ids).logits,
        atol=1e-3,
    )
    train.main(
        call(demos, "trials", tmp_path, "--technique", "lora", "--lora-keep", "--lora-rank", 2, "--epochs", 1)
    )
    kept = checkpoint.load(tmp_path / "lora")
    assert sum(isinstance(m, LoRALinear) for m in kept.model.modules()) == 4
    base = AutoModelForSequenceClassification.from_pretrained(
        demos["trials"][1], num_labels=len(kept.task.labels), ignore_mismatched_sizes=True
    )
    theirs = PeftModel.from_pretrained(base, tmp_path / "lora" / "adapter").eval()
    assert torch.allclose(theirs(ids).logits, kept.model(ids).logits, atol=1e-5)
    config = json.loads((tmp_path / "lora" / "adapter" / "adapter_config.json").read_text())
    assert (
        config["peft_type"] == "LORA"
        and config["r"] == 2
        and config["base_model_name_or_path"] == str(demos["trials"][1])
    )


def test_lora_claims(demos, capsys):
    task = Ner(crf=True)
    task.labels = ["O", "B-x", "I-x"]
    model, _, fresh = checkpoint.from_pretrained(demos["ner"][1], task)
    assert head_modules(model) == ["classifier", "crf"]
    total = sum(p.numel() for p in model.parameters())
    model = LoRA(fresh=fresh).prepare(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    printed = capsys.readouterr().out
    assert (
        f"rank 1 on 4/13 Linear (query, value), trainable {trainable:,} of" in printed
        and f"({100 * trainable / total:.2f}%)" in printed
    )
    assert "not inference" in printed and trainable == 4 * (32 + 32) + 3 * 32 + 3 + 3 + 9
    mlm = AutoModelForMaskedLM.from_pretrained(demos["mlm"][1])
    assert head_modules(mlm) == ["cls.predictions.transform"]  # the decoder shares the embeddings' weight


# --- whole runs


@pytest.mark.parametrize(
    "task, technique", [(task, technique) for task in NEW for technique in TECHNIQUES[task]]
)
def test_a_rebuilt_run_of_any_task_scores_as_it_did(trained, demos, task, technique):
    run = checkpoint.load(trained[task] / technique)
    splits = splits_of(run, demos[task][0])
    predictions = inference.predict_examples(run, splits["test"])
    scores = run.task.score(splits["test"], predictions, intervals=True)
    for name, value in run.facts["test"]["overall"].items():
        assert (scores.overall[name] or 0) == pytest.approx(value or 0, abs=1e-6), name
    assert run.facts["test"]["intervals"]
    if task == "mlm":
        assert not (trained[task] / technique / "predictions.csv").exists()
    else:
        rows = read_csv(trained[task] / technique / "predictions.csv")
        assert [row["row_id"] for row in rows] == [example.row_id for example in splits["test"]]


@pytest.mark.parametrize("task", NEW)
def test_no_text_of_any_task_reaches_a_file(trained, demos, task):
    texts = []
    for split in splits_of(checkpoint.load(trained[task] / "base"), demos[task][0]).values():
        texts += [" ".join(e.words) if task == "ner" else e.text for e in split][:40]
    pieces = {
        text[i : i + 25].lower()
        for text in texts
        for i in range(0, max(1, len(text) - 25), 12)
        if len(text) > 25
    }
    assert len(pieces) > 50
    for path in trained[task].rglob("*"):
        if path.suffix in (".json", ".csv", ".md", ".txt") and path.name not in (
            "tokenizer.json",
            "vocab.txt",
        ):
            content = path.read_text().lower()
            assert not [piece for piece in pieces if piece in content], path


@pytest.mark.parametrize("task", NEW)
def test_benchmark_and_report_of_every_task(trained, task):
    out = trained[task]
    benchmark.main([str(out), "--rounds", "2", "--length", "16", "--batch-size", "2"])
    assert {row["technique"] for row in read_csv(out / "benchmark.csv")} == set(TECHNIQUES[task])
    report.main([str(out)])
    text = (out / "results.md").read_text()
    assert all(f"| {technique} |" in text for technique in TECHNIQUES[task]) and TASKS[task].published in text
    written = {path.name for path in out.iterdir()}
    assert {"results.csv", "accuracy_latency.png", "learning_curves.png"} <= written
    assert ("calibration.png" in written) == (task == "readmission")
    first = next(iter(checkpoint.load(out / "base").task.headline)).lower()
    for row in read_csv(out / "results.csv"):
        assert float(row[f"{first}_low"]) <= float(row[first]) <= float(row[f"{first}_high"])


def ask(run, text, monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    capsys.readouterr()
    predict.main([str(run), "-", *words])
    return json.loads(capsys.readouterr().out)


def test_predict_answers_in_each_tasks_own_form(trained, demos, tmp_path, monkeypatch, capsys):
    text = "\n  Patient reports irregular periods and low estrogen."
    answer = ask(trained["ner"] / "base", text, monkeypatch, capsys, "--show-text")
    assert answer["spans"] and all(
        span["text"] == text[span["start"] : span["end"]] for span in answer["spans"]
    )
    assert all(0 < span["confidence"] <= 1 and span["type"] in demo_types() for span in answer["spans"])
    assert "text" not in str(ask(trained["ner"] / "base", text, monkeypatch, capsys))
    assert ask(trained["ner"] / "base", "...", monkeypatch, capsys)["spans"] is not None
    answer = ask(
        trained["readmission"] / "quantization", "Left against medical advice. " * 60, monkeypatch, capsys
    )
    assert answer["predicted"] in ("not readmitted", "readmitted") and 0 < answer["probability"] < 1
    answer = ask(trained["mlm"] / "lora", "patients with [MASK] and a [MASK] of it", monkeypatch, capsys)
    assert len(answer["masks"]) == 2 and all(len(places) == 5 for places in answer["masks"])
    assert ask(trained["mlm"] / "lora", "no mask", monkeypatch, capsys) == {"masks": []}
    assert ask(trained["mlm"] / "lora", "a b " * 30 + "[MASK]", monkeypatch, capsys) == {
        "masks": [],
        "masks beyond the block": 1,
    }
    answer = ask(trained["trials"] / "base", "Slow accrual", monkeypatch, capsys)
    assert answer["predicted"] == max(answer["probabilities"], key=answer["probabilities"].get)
    notes = tmp_path / "notes.csv"
    notes.write_text("ROW_ID,TEXT\n7,irregular periods and low estrogen\n8,\n9,nothing\n")
    monkeypatch.chdir(tmp_path)
    predict.main([str(trained["ner"] / "base"), "notes.csv"])
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["row_id"] for line in lines] == ["7", "9"] and all(
        set(line) == {"row_id", "spans"} for line in lines
    )
    predict.main([str(trained["trials"] / "base"), str(demos["trials"][0]), "--out", "t.csv"])
    assert list(read_csv("t.csv")[0])[:2] == ["row_id", "predicted"]


def demo_types():
    return {"Symptoms", "Hormones", "Procedures", "Medications", "Ultrasound"}


def test_the_adapted_encoder_starts_another_task(trained, demos, tmp_path, refuses, capsys):
    for task, fresh in (("trials", "bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias, classifier.weight"),
                        ("readmission", "bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias"), ("ner", "classifier.bias, classifier.weight")):  # fmt: skip
        train.main(
            call(
                demos,
                task,
                tmp_path,
                "--model",
                trained["mlm"] / "lora",
                "--name",
                f"adapted-{task}",
                "--epochs",
                1,
            )
        )
        assert (
            f"new: {fresh}" in capsys.readouterr().out
            and (tmp_path / f"adapted-{task}" / "run.json").exists()
        )
    assert (tmp_path / "classification_report_adapted-trials.csv").exists()
    task = Trials()
    task.labels = ["a", "b", "c"]
    plain, _, fresh = checkpoint.from_pretrained(demos["trials"][1], task)
    other, _, forgotten = checkpoint.from_pretrained(demos["trials"][1], task, fresh_pooler=True)
    assert set(forgotten) - set(fresh) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    same = {
        name: plain.state_dict()[name].equal(tensor)
        for name, tensor in other.state_dict().items()
        if name.startswith("bert.")
    }
    assert not same.pop("bert.pooler.dense.weight") and all(same.values())
    line = refuses(train.main, call(demos, "trials", tmp_path / "x", "--model", trained["mlm"] / "lowrank"))
    assert "its layers are those of lowrank, not plain" in line
    line = refuses(train.main, call(demos, "mlm", tmp_path / "x", "--model", trained["mlm"] / "lora"))
    assert "is a finished run; continue it with --start" in line


def test_evaluation_by_steps_stops_by_patience_and_resumes_to_the_same_weights(
    demos, tmp_path, monkeypatch, capsys
):
    words = ["--eval-steps", 5, "--patience", 2, "--epochs", 40, "--lr", 0.02]
    train.main(call(demos, "readmission", tmp_path / "a", *words))
    run = files.read_json(tmp_path / "a" / "base" / "run.json")
    history, best = run["history"], run["best_epoch"]
    assert "stopped, 2 validations without a better one" in capsys.readouterr().out
    assert [row["Step"] for row in history][:3] == [5, 10, 15] and history[-1]["Epoch"] < 40
    assert history[-3]["Epoch"] == best and max(row["AUROC"] for row in history) == history[-3]["AUROC"]
    original, calls = train.collate, []

    def breaks(*args):
        calls.append(args)
        if len(calls) == 13:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(train, "collate", breaks)
    with pytest.raises(KeyboardInterrupt):
        train.main(call(demos, "readmission", tmp_path / "b", *words, "--save-minutes", 0))
    monkeypatch.setattr(train, "collate", original)
    train.main(call(demos, "readmission", tmp_path / "b", *words))
    assert "resuming at epoch 1, step 13" in capsys.readouterr().out
    ours, theirs = (checkpoint.load(tmp_path / d / "base").model.state_dict() for d in "ab")
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_another_head_starts_from_a_run_or_is_refused(trained, demos, tmp_path, refuses, capsys):
    train.main(
        call(
            demos,
            "readmission",
            tmp_path,
            "--start",
            trained["readmission"] / "base",
            "--head",
            "logistic",
            "--epochs",
            0,
        )
    )
    assert "new: classifier.bias, classifier.weight" in capsys.readouterr().out
    ours, base = (
        checkpoint.load(tmp_path / "base").model,
        checkpoint.load(trained["readmission"] / "base").model,
    )
    assert ours.bert.encoder.layer[1].output.dense.weight.equal(
        base.bert.encoder.layer[1].output.dense.weight
    )
    train.main(
        call(demos, "ner", tmp_path / "crf", "--start", trained["ner"] / "base", "--crf", "--epochs", 1)
    )
    assert "new: crf.start, crf.transitions" in capsys.readouterr().out
    line = refuses(
        train.main,
        call(
            demos,
            "ner",
            tmp_path / "x",
            "--teacher",
            trained["ner"] / "base",
            "--crf",
            "--technique",
            "distillation",
        ),
    )
    assert "its head is another one" in line
    line = refuses(
        train.main,
        call(
            demos,
            "readmission",
            tmp_path / "x",
            "--start",
            trained["readmission"] / "lowrank",
            "--head",
            "logistic",
        ),
    )
    assert "has another head and layers of lowrank" in line
    train.main(call(demos, "trials", tmp_path / "kept", "--technique", "lora", "--lora-keep", "--epochs", 1))
    line = refuses(
        train.main,
        call(
            demos,
            "trials",
            tmp_path / "x",
            "--technique",
            "distillation",
            "--teacher",
            tmp_path / "kept" / "lora",
        ),
    )
    assert "is lora, its layers make no plain student" in line
    train.main(call(demos, "trials", tmp_path / "on", "--start", tmp_path / "kept" / "lora", "--epochs", 1))
    kept, went_on = (
        checkpoint.load(tmp_path / d).model.bert.encoder.layer[0].attention.self.query.base.weight
        for d in ("kept/lora", "on/base")
    )
    assert not kept.equal(went_on)
    train.main(call(demos, "trials", tmp_path / "kept", "--multi-label", "--epochs", 1))
    assert "different tasks or labels" in refuses(report.main, [tmp_path / "kept"])


def test_ready_files_without_patients_split_by_text(tmp_path, capsys):
    rows = [(f"text {i % 50}", i % 50 % 2) for i in range(150)]
    splits, _ = Readmission().load(table(tmp_path / "ready.csv", ("TEXT", "Label"), rows), 1.0, 0.2, 0.2, 1)
    texts = [{note.text for note in splits[split]} for split in SPLITS]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    assert "the split is by text, not by patient" in capsys.readouterr().out


def test_separate_files_and_texts_on_both_sides(demos, tmp_path):
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(30)]
    paths = [table(tmp_path / f"{split}.csv", ("context", "label"), part) for split, part in
             zip(("train", "validation", "test"), (rows[:20] + rows[24:26], rows[20:24], rows[24:]))]  # fmt: skip
    splits, facts = Trials().load(paths[0], 1.0, paths[1], paths[2], 42)
    assert (
        facts["sizes"] == {"train": 20, "validation": 4, "test": 6}
        and facts["rows"]["also in the test or validation file, left out"] == 2
    )
    splits, facts = Trials().load(paths[0], 1.0, 0.25, paths[2], 42)
    assert facts["sizes"]["test"] == 6 and facts["sizes"]["validation"] in (5, 6)


def test_two_processes_split_alike_wherever_the_files_lie(demos, tmp_path):
    for task, (data, _) in demos.items():
        other = tmp_path / task
        other.mkdir()
        for path in data.parent.glob("*.csv"):
            (other / path.name).write_bytes(path.read_bytes())
        (other / data.name).write_bytes(data.read_bytes())
        first, second = (TASKS[task]().load(str(p), 1.0, 0.1, 0.2, 42)[0] for p in (data, other / data.name))
        assert all([e.row_id for e in first[s]] == [e.row_id for e in second[s]] for s in SPLITS)


# --- refused input


@pytest.mark.parametrize(
    "task, words, message",
    [
        ("ner", "--data one.tsv", "one.tsv, line 2: 1 columns where there should be 2"),
        ("ner", "--data tag.tsv", "tag.tsv, line 2: the last column is no BIO tag"),
        ("ner", "--data o.tsv", "no entity in 2 sentences; every tag is O"),
        ("ner", "--data none.tsv", "none.tsv: no such file"),
        ("ner", "--data empty.tsv", "empty.tsv: no sentence in it"),
        ("ner", "--data lonely.tsv", "no entity in validation; give more data"),
        ("ner", "--entity-types Mood", "--entity-types Mood: no such entity"),
        ("ner", "--test none.tsv", "none.tsv: no such file"),
        ("ner", "--validation 0.7", "--validation: 0.7 is outside (0, 0.5)"),
        (
            "readmission",
            "--data ready.csv --label-column Label",
            "ready.csv, line 3: column 'Label' is neither 0 nor 1",
        ),
        ("readmission", "--data alone/notes.csv", "no column 'label' and no ADMISSIONS.csv beside it"),
        (
            "readmission",
            "--data notes.csv --admissions date.csv",
            "date.csv, line 2: column ADMITTIME is no date and time",
        ),
        (
            "readmission",
            "--data notes.csv --admissions twice.csv",
            "twice.csv, line 3: the HADM_ID of line 2 again",
        ),
        ("readmission", "--data notes.csv --admissions nocolumn.csv", "nocolumn.csv: no column 'DISCHTIME'"),
        ("readmission", "--days 0", "--days: 0 is outside (0,"),
        ("readmission", "--data negative.csv", "has no admission 'readmitted'"),
        ("readmission", "--epochs 0", "--epochs 0: nothing would be learnt"),
        ("trials", "--label-column a", "no column 'a'; found context"),
        ("trials", "--data text.csv", "labels look like text, not like names"),
        ("trials", "--data sets.csv --label-column a,b", "sets.csv, line 3: column 'b' is neither 0 nor 1"),
        ("trials", "--data onelabel.csv", "1 distinct labels among"),
        ("trials", "--threshold 2", "--threshold: 2 is outside (0, 1)"),
        ("trials", "--label-column a,b --label-separator ;", "not with several 0/1 columns"),
        (
            "trials",
            "--technique lora --lora-targets nose",
            "--lora-targets nose: no such layer; the encoder has query, key, value",
        ),
        ("trials", "--technique lora+pruning", "lora freezes the weights that pruning would change"),
        ("trials", "--data free.csv", "20 distinct labels among 20 texts; is --label-column right?"),
        ("trials", "--label-column context", "--label-column names a column of the text"),
        ("ner", "--data /dev/null/x", "cannot be read"),
        ("trials", "--name a/b", "--name a/b: give a plain name"),
        ("mlm", "--max-length 64", "--max-length: --task mlm has --block-size instead"),
        ("mlm", "--data few.csv", "is too small for a masked one"),
        ("trials", "--label-column a,a", "or several, each of them once"),
        ("readmission", "--category nothing", "726 of another category, "),
        ("mlm", "--block-size 999", "--block-size 999: the model reads at most 256 tokens"),
        ("mlm", "--text-columns summary", "no column 'summary'; found nct_id"),
    ],
)
def test_bad_input_of_the_tasks_is_one_line(task, words, message, demos, refuses, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    admissions = "SUBJECT_ID,HADM_ID,ADMITTIME,DISCHTIME,ADMISSION_TYPE\n1,5,2150-01-01 10:00:00,2150-01-02 10:00:00,URGENT\n"
    files = {
        "one.tsv": "a\tO\nsecret\n", "tag.tsv": "a\tO\nb\tsecret\n", "o.tsv": "a\tO\n\nb\tO\n", "empty.tsv": "\n\n",
        "lonely.tsv": "a\tB-x\n\n" + "".join(f"w{i}\tO\n\n" for i in range(20)),
        "ready.csv": "TEXT,Label\nx,1\ny,secret\n", "notes.csv": "HADM_ID,TEXT\n5,secret\n",
        "date.csv": admissions.replace("2150-01-01 10:00:00", "secret"), "twice.csv": admissions + admissions.splitlines()[1] + "\n",
        "nocolumn.csv": "SUBJECT_ID,HADM_ID,ADMITTIME\n1,2,3\n", "negative.csv": "TEXT,Label\n" + "".join(f"x{i},0\n" for i in range(30)),
        "text.csv": "context,label\nx,the secret {patient} says\ny,b\n", "sets.csv": "context,a,b\nx,0,1\ny,1,secret\n",
        "onelabel.csv": "context,label\n" + "".join(f"x{i},b\n" for i in range(30)),
    }  # fmt: skip
    files["few.csv"] = "TEXT\n" + "\n".join("abcde") + "\n"
    files["free.csv"] = "context,label\n" + "".join(f"x{i},secret {i}\n" for i in range(20))
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "notes.csv").write_text(files["notes.csv"])
    line = refuses(train.main, call(demos, task, "out", *words.split()))
    assert message in line and "secret" not in line
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_every_task_is_in_the_dict_and_its_flags_in_the_parser():
    assert list(TASKS) == ["symptoms", "readmission", "ner", "mlm", "trials"]
    parser = arguments.build_parser()
    for cls in (*TASKS.values(), *compress.TECHNIQUES.values()):
        assert all(flag in parser._option_string_actions for flag in cls.OPTIONS)
