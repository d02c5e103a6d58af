"""Named entities: BIO files, the CRF and decoding against enumeration, windows."""

import gzip
import itertools
import json
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import evaluate
import metrics
import predict
import report
from cli import BadInput
from conftest import read_csv
from data import IGNORE, collate, windows
from files import read_json, write_json
from run import inference
from tasks.bio import CRF, FORBIDDEN, allowed, begins_running, marginals, read_bio, repair, viterbi
from tasks.ner import Ner, Sentence


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
        shorter = [e[:1], e, e[: length - 1 or 1]]  # padded beside others, the same
        sure = marginals(shorter, start, transitions, together=1 + seed)
        assert [len(p) for p in sure] == [len(s) for s in shorter]
        assert np.allclose(sure[1], expected, atol=1e-6)
        assert np.allclose(sure[2], marginals([shorter[2]], start, transitions)[0], atol=1e-12)
        for path in (paths[i] for i in np.flatnonzero(legal)[::7]):
            tags = torch.zeros(3, 4, dtype=torch.long)
            tags[row, :length] = torch.tensor(path)
            ours = crf.log_likelihood(emissions, tags, mask)[row]
            assert float(ours.detach()) == pytest.approx(likelihood[paths.index(path)], abs=1e-3)


def drawn_sentences(count, inside):
    """(task, sentences of 5 words, logits (count, 5, 3)): true tags drawn by the softmax of their logits.

    inside: the mean logit of I-x; where it is drawn after O, the tag is B-x.
    """
    task, generator = Ner(), np.random.default_rng(0)
    task.labels = ["O", "B-x", "I-x"]
    logits = generator.normal((0, 0, inside), 2, (count, 5, 3))
    tags = (logits + generator.gumbel(size=logits.shape)).argmax(-1)
    fixed = [repair([task.labels[i] for i in row])[0] for row in tags]
    labels = [[task.labels.index(tag) for tag in row] for row in fixed]
    return task, [Sentence(str(i), str(i), list("abcde"), row) for i, row in enumerate(labels)], logits


def predicted(task, logits):
    """Predictions as combine() makes them of logits (count, words, K)."""
    start, transitions = (np.where(ok, 0.0, FORBIDDEN) for ok in allowed(task.labels))
    rows = torch.from_numpy(logits).log_softmax(-1).numpy()
    return [
        ([task.labels[i] for i in viterbi(row, start, transitions)], row, start, transitions) for row in rows
    ]


def test_a_run_that_is_three_times_too_sure_has_temperature_three():
    task, sentences, logits = drawn_sentences(800, inside=-99)
    too_sure = predicted(task, 3 * logits)
    task.calibrate(sentences, too_sure)
    found = task.calibration(sentences, too_sure)
    assert found["temperature"] == task.temperature == pytest.approx(3, rel=0.1)
    assert found["plain"]["ECE"] > 0.08 > 0.03 > found["scaled"]["ECE"]
    assert found["scaled"]["Brier"] < found["plain"]["Brier"]
    sure = [[s["confidence"] for s in task.answer(*pair)["spans"]] for pair in zip(sentences, too_sure)]
    task.calibrated = True  # as predict.py --calibrated: the same spans, less sure
    less = [[s["confidence"] for s in task.answer(*pair)["spans"]] for pair in zip(sentences, too_sure)]
    assert list(map(len, sure)) == list(map(len, less)) and np.mean(sum(less, [])) < np.mean(sum(sure, []))


@pytest.mark.parametrize("crf", (False, True))
def test_the_calibration_of_spans_is_that_of_the_confidences_that_predict_states(crf):
    task, sentences, logits = drawn_sentences(400, inside=1)
    task.options.crf = crf
    answers = predicted(task, logits)
    task.calibrate(sentences, answers)
    found, right, sure = task.calibration(sentences, answers), [], []
    assert (task.temperature is None) == (found["scaled"] is None) == crf
    for sentence, answer in zip(sentences, answers):
        true = metrics.spans([task.labels[i] for i in sentence.label])
        for span, stated in zip(metrics.spans(answer[0]), task.answer(sentence, answer)["spans"]):
            right.append(span in true)
            sure.append(stated["confidence"])
    right, sure = np.array(right), np.array(sure)
    assert sum(count for *_, count in found["plain"]["bins"]) == len(right) > 300
    assert found["plain"]["Brier"] == pytest.approx(((sure - right) ** 2).mean(), abs=1e-3)
    gaps = [abs((sure - right)[np.ceil(15 * sure) == bin_].sum()) for bin_ in range(1, 16)]
    assert found["plain"]["ECE"] == pytest.approx(sum(gaps) / len(right), abs=5e-3)


def test_without_spans_or_confidences_there_is_no_calibration():
    task, sentences, logits = drawn_sentences(20, inside=0)
    assert task.calibration(sentences, predicted(task, logits - [0, 99, 99])) is None
    none_true = [Sentence(s.row_id, "", s.words, [0] * 5) for s in sentences]
    assert task.calibration(none_true, predicted(task, logits))["plain"]["Brier"] > 0
    baseline = [(["O"] * 5,)] * 20
    assert task.calibration(sentences, baseline) is None and task.certainty(sentences, baseline) is None


def test_untagged_running_text_is_read_without_its_tags(tmp_path):
    path = tmp_path / "sample.txt"
    path.write_text("Patient irregular B-Symptoms\nperiods I-Symptoms\n", encoding="utf-8")
    counts = Counter({"rows": 0})
    (sentence,) = Ner().unlabelled(str(path), counts)
    assert sentence.words == ["Patient", "irregular", "periods"] and counts["rows"] == 1


def test_a_vitamin_is_no_tag_of_running_text():
    assert begins_running(["Patient irregular B-Symptoms", "periods I-Symptoms"])
    assert not begins_running(["Takes vitamin B-12 daily", "and some B-6"])


def test_runs_report_the_calibration_of_their_spans(trained, tmp_path):
    out = shutil.copytree(trained["ner"] / "base", tmp_path / "ner" / "base").parent
    run = read_json(out / "base" / "run.json")
    found = run["test"]["calibration"]
    predicted_spans = sum(len(row["predicted"].split()) for row in read_csv(out / "base" / "predictions.csv"))
    assert sum(count for *_, count in found["plain"]["bins"]) == predicted_spans > 0
    assert found["temperature"] == run["task"]["temperature"] and found["scaled"]
    report.main([str(out)])
    text = (out / "results.md").read_text()
    assert f"Of the probability of {Ner.sure_of}. ECE" in text and (out / "calibration.png").exists()
    assert f"| base | {found['plain']['ECE']:.4f} | {found['scaled']['ECE']:.4f} |" in text
    found |= {"temperature": None, "scaled": None}  # as with a CRF
    run["task"]["temperature"] = None
    write_json(out / "base" / "run.json", run)
    report.main([str(out)])
    assert f"| base | {found['plain']['ECE']:.4f} |  |" in (out / "results.md").read_text()


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
        "-DOCSTART- -X- O O\n\nEU NNP O B-ORG\nrejects VB O O\r\n\n\n"
        "Peter NNP O I-PER\nBlackburn NNP O I-PER\n# NN O O\n\n"
        "-DOCSTART- -X- O O\n\nx NN O I-ORG\n"
    )
    read = list(read_bio(path))
    assert [(line, document, words) for line, document, words, _ in read] == [
        (3, "document 1", ["EU", "rejects"]),
        (7, "document 1", ["Peter", "Blackburn", "#"]),
        (13, "document 2", ["x"]),
    ]
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
        "# newdoc id = 1\n# sent_id = 1\n# text = w v\nw\tO\nv\tB-x\n\n"
        "# sent_id = 2\nw\tO\n\n# newdoc id = 2\n# sent_id = 3\nz\tB-x\n"
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
    assert "texts of train are in validation or test too" in capsys.readouterr().out
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


# --- words and tags in running text

SAMPLE = (
    "Patient irregular B-Symptoms  \nperiods I-Symptoms  \n...  \n"  # as the menstrual NER project shows it
)


def test_the_sample_of_the_published_project_is_read_as_it_stands(tmp_path, capsys):
    path = tmp_path / "bio_dataset.txt"
    path.write_text(SAMPLE + "\nlow O estrogen B-Hormones\n")
    first, second = Ner().read(str(path), lambda row_id: True, Counter())
    assert first.words == ["Patient", "irregular", "periods", "..."] and first.row_id == "1"
    assert metrics.spans(first.label) == [(1, 3, "Symptoms")]
    assert (second.words, second.label) == (["low", "estrogen"], ["O", "B-Hormones"])
    assert capsys.readouterr().out.count("its lines differ in length") == 1


@pytest.mark.parametrize(
    "content, message",
    [
        ("EU NNP B-NP B-ORG\nrejects VBZ B-NP\n", "line 1: a tag that follows no word"),
        ("EU NNP B-NP B-ORG\nrejects VBZ secret\n", "line 2: 3 columns where there should be 4"),
        ("ROW_ID,TEXT\n1,secret B-secret and I-131\n", "line 1: 1 columns where there should be 2"),
        ("a secret B-x\nb I-x\nO\n", "line 3: a tag that follows no word"),
        ("a O\nb O\nc secret B-x\n", "line 3: 3 columns where there should be 2"),
        ("a\tO\nb secret\tO\tO\n", "line 2: 3 columns where there should be 2"),
    ],
)
def test_other_lines_that_differ_in_length_are_refused(tmp_path, content, message):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(BadInput, match=message) as error:
        list(read_bio(tmp_path / "a.txt"))
    assert "secret" not in str(error.value)


def test_files_of_words_are_read_with_and_without_tags(tmp_path):
    words = [["EU", "rejects", "#"], ["Peter", "#5"]]
    forms = {
        "a.tsv": "# doc 7\nEU\tB-x\nrejects\tO\n#\tO\n\nPeter\tany\n#5\tO\n",
        "b.txt": "# doc 7\nEU\nrejects\n#\n\nPeter\n#5\n",
        "c.conll": "-DOCSTART- -X- O\n\nEU NNP B-x\nrejects VB ?\n# . O\n\nPeter NNP O\n#5 CD O\n",
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        counts = Counter()
        found = list(Ner().unlabelled(str(tmp_path / name), counts))
        assert [sentence.words for sentence in found] == words and counts["rows"] == 2, name
        assert {s.subject for s in found} == {"document 1" if name == "c.conll" else "7"}
        assert all(sentence.label is None and sentence.offsets is None for sentence in found)
    (tmp_path / "d.txt").write_text("low\niron now\n")
    with pytest.raises(BadInput, match=r"d.txt, line 2: 2 columns where there should be 1"):
        list(Ner().unlabelled(str(tmp_path / "d.txt"), Counter()))
    (tmp_path / "e.csv").write_text("ROW_ID,TEXT\n7,low iron\n")
    assert [s.words for s in Ner().unlabelled(str(tmp_path / "e.csv"), Counter())] == [["low", "iron"]]
    (tmp_path / "e.tsv").write_text("ROW_ID\tTEXT\n")
    assert Ner()._is_table(tmp_path / "e.tsv") and not Ner()._is_table(tmp_path / "a.tsv")


def test_predict_answers_a_file_of_words_by_word_numbers(trained, demos, tmp_path):
    run, data = trained["ner"] / "base", demos["ner"][0]
    predict.main([str(run), str(data), "--out", str(tmp_path / "p.jsonl")])
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    sentences = list(read_bio(data))
    assert [line["row_id"] for line in lines] == [str(number) for number, *_ in sentences]
    evaluate.main([str(run), "--data", str(data), "--out", str(tmp_path / "out")])
    expected = {row["row_id"]: row["predicted"] for row in read_csv(tmp_path / "out/predictions.csv")}
    for line in lines:
        spans = [f"{s['start_word']}-{s['end_word']}:{s['type']}" for s in line["spans"]]
        assert " ".join(spans) == expected[line["row_id"]]
    assert any(line["spans"] for line in lines)
