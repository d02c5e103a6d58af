"""pytorch_model.bin: a checkpoint of config.json, pytorch_model.bin and vocab.txt, as Bio_ClinicalBERT's."""

import os
import shutil
import warnings

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForPreTraining

import train
from conftest import ROOT
from files import read_json, write_json
from run import checkpoint, untrusted
from tasks import TASKS

THREE = {"config.json", "pytorch_model.bin", "vocab.txt"}
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def old_names(state):
    """A state_dict with the names of before 2020, and the buffer that was stored then."""
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in state.items()
    }
    return {**renamed, "bert.embeddings.position_ids": torch.arange(256)[None]}


@pytest.fixture(params=("zip, new names", "zip, old names", "before torch 1.6, old names"))
def three(request, small, tmp_path):
    """(directory of exactly those three files, the state_dict saved there)."""
    directory = tmp_path / "bert"
    directory.mkdir()
    shutil.copy(small[1] / "vocab.txt", directory)
    config = BertConfig.from_pretrained(small[1])
    config.architectures = ["BertForPreTraining"]
    config.to_json_file(directory / "config.json")
    torch.manual_seed(1)
    state = BertForPreTraining(config).state_dict()
    tied = (
        state[f"{name}.weight"] for name in ("cls.predictions.decoder", "bert.embeddings.word_embeddings")
    )
    assert len({tensor.data_ptr() for tensor in tied}) == 1
    held = old_names(state) if "old names" in request.param else state
    torch.save(held, directory / "pytorch_model.bin", _use_new_zipfile_serialization="zip" in request.param)
    assert {path.name for path in directory.iterdir()} == THREE
    return directory, state


def test_the_three_files_are_enough(three, arguments, tmp_path, capsys):
    directory, state = three
    call = [*arguments, "--epochs", "1", "--lr", "1e-12", "--out", str(tmp_path / "out")]
    call[call.index("--model") + 1] = str(directory)
    train.main(call)
    printed = capsys.readouterr().out
    assert "pytorch_model.bin is read as tensors and nothing else; runs store safetensors" in printed
    total = len(BertForPreTraining(BertConfig.from_pretrained(directory)).bert.state_dict())
    assert f"{total}/{total} encoder tensors loaded, new: classifier.bias, classifier.weight" in printed
    run = tmp_path / "out" / "base"
    assert not [path for path in run.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    torch.testing.assert_close(load_file(run / "model.safetensors")[QUERY], state[QUERY])
    assert {path.name for path in directory.iterdir()} == THREE


def test_three_files_of_bert_bases_size(small, tmp_path):
    directory = tmp_path / "bert"
    directory.mkdir()
    config = BertConfig(architectures=["BertForPreTraining"])  # 12 layers of 768 channels
    words = (small[1] / "vocab.txt").read_text().splitlines()
    words += [f"word{i}" for i in range(config.vocab_size - len(words))]
    (directory / "vocab.txt").write_text("\n".join(words))
    config.to_json_file(directory / "config.json")
    with torch.device("meta"):  # random numbers for every weight would take seconds
        names = BertForPreTraining(config).state_dict()
    state = {name: torch.full(tensor.shape, 0.01) for name, tensor in names.items()}
    state[QUERY] = torch.randn(768, 768)
    torch.save(state, directory / "pytorch_model.bin")
    model, _, fresh = checkpoint.from_pretrained(directory, TASKS["symptoms"]())
    torch.testing.assert_close(model.state_dict()[QUERY], state[QUERY])
    assert sorted(fresh) == ["classifier.bias", "classifier.weight"]
    assert sum(weight.numel() for weight in model.bert.parameters()) == 109_482_240


def test_the_head_for_masked_words_is_read_too(three):
    directory, state = three
    model, tokenizer, fresh = checkpoint.from_pretrained(directory, TASKS["mlm"]())
    loaded = model.state_dict()
    for name in ("cls.predictions.transform.dense.weight", "cls.predictions.transform.LayerNorm.weight"):
        torch.testing.assert_close(loaded[name], state[name])
    assert not fresh and tokenizer.pad_token_id == 0


def test_a_hub_name_without_safetensors(three, arguments, tmp_path, capsys, monkeypatch):
    directory, state = three
    folder = tmp_path / "cache" / "models--clinic--bert"  # laid out as the hub's cache, with links to blobs
    snapshot = folder / "snapshots" / ("a" * 40)
    for place in (snapshot, folder / "refs", folder / "blobs"):
        place.mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    for number, path in enumerate(sorted(directory.iterdir())):
        shutil.copy(path, folder / "blobs" / str(number))
        (snapshot / path.name).symlink_to(os.path.join("..", "..", "blobs", str(number)))
    asked = []
    fetch = huggingface_hub.snapshot_download

    def recorded(name, **words):
        asked.append(words["allow_patterns"])
        return fetch(name, **words)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", recorded)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    call = [*arguments, "--epochs", "1", "--lr", "1e-12", "--out", str(tmp_path / "out")]
    call[call.index("--model") + 1] = "clinic/bert"
    train.main([*call, "--revision", "a" * 40])
    assert "pytorch_model.bin" in capsys.readouterr().out
    assert asked == [checkpoint.FETCHED, ["pytorch_model.bin"]]  # and nobody to convert it
    torch.testing.assert_close(load_file(tmp_path / "out/base/model.safetensors")[QUERY], state[QUERY])
    assert read_json(tmp_path / "out/base/run.json")["arguments"]["revision"] == "a" * 40


def test_safetensors_are_taken_where_there_are_both(small, tmp_path):
    directory = shutil.copytree(small[1], tmp_path / "both")
    (directory / "pytorch_model.bin").write_bytes(b"never opened")
    checkpoint.from_pretrained(directory, TASKS["symptoms"]())


class Evil:
    """Unpickled in the plain way it makes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def holders(tmp_path):
    """{what is wrong: what stands in pytorch_model.bin}."""
    one, row = torch.zeros(1), torch.zeros(4)
    with warnings.catch_warnings(action="ignore"):  # such tensors will go from torch
        quantized = torch.quantize_per_tensor(row, 0.1, 0, torch.qint8)
    return {
        "code": {"a": Evil(tmp_path / "ran")},
        "no tensors": {"a": 3},
        "no dict": [one],
        "nested": {"state_dict": {"a": one}},
        "larger than the file": {"a": one.expand(10**6, 10**6)},
        "sparse": {"a": row.to_sparse()},
        "quantized": {"a": quantized},
    }


@pytest.mark.filterwarnings("ignore")  # torch's own on its old kinds of storage
@pytest.mark.parametrize("zipped", (True, False))
@pytest.mark.parametrize("what", [*holders(ROOT), "cut short", "empty"])
def test_anything_else_is_refused_in_one_line(what, zipped, small, arguments, refuses, tmp_path):
    directory = tmp_path / "bert"
    directory.mkdir()
    for name in ("config.json", "vocab.txt"):
        shutil.copy(small[1] / name, directory)
    path = directory / "pytorch_model.bin"
    torch.save(holders(tmp_path).get(what, {"a": torch.zeros(999)}), path,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    if what in ("cut short", "empty"):
        path.write_bytes(path.read_bytes()[: 3000 if what == "cut short" else 0])
    call = [*arguments, "--out", str(tmp_path / "out")]
    call[call.index("--model") + 1] = str(directory)
    assert "pytorch_model.bin: " in refuses(train.main, call) and not (tmp_path / "ran").exists()
    assert not (tmp_path / "out" / "base").exists()


def test_the_model_that_a_config_describes_may_not_outgrow_the_pickle(three):
    directory, _ = three
    weights = untrusted.read_headers(directory)
    assert weights.shapes[QUERY] == (32, 32)
    write_json(directory / "config.json", {**read_json(directory / "config.json"), "num_hidden_layers": 900})
    with pytest.raises(checkpoint.BadInput, match="far larger than its weights file"):
        checkpoint.from_pretrained(directory, TASKS["symptoms"]())
