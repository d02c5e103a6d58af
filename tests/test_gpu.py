"""On a GPU the same answers, but for bf16: every technique and task, compiled, interrupted, by nccl.

What needs a GPU is skipped where there is none; CI has none.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig, AutoModelForSequenceClassification

import predict
import train
from bench.shape import bert_base
from compress import TECHNIQUES
from conftest import OTHER_TASKS, ROOT, read_csv, run_words
from data import collate, pack
from fast import precision, speedups
from files import read_json
from layers import set_attention_dropout
from tasks.task import Task

DEVICE = "cuda"
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
DEEP = "--technique distillation --hidden-weight 1 --augment 0.2 --name deep"
RUNS = {name: ["--technique", name] for name in (*TECHNIQUES, "distillation+lowrank+pruning+quantization")}
RUNS |= {"deep": DEEP.split(), "half": ["--technique", "pruning", "--structured", "--target-macs", "0.5"]}


def answers(run, notes, place, *words):
    """What predict.py answers, a list with an item per note."""
    predict.main([str(word) for word in (run, notes, "--out", place, *words)])
    text = place.read_text()
    return [json.loads(line) for line in text.splitlines()] if text.startswith("{") else read_csv(place)


def furthest(some, others):
    """The largest difference between the numbers of two lists of rows, row ids left out."""
    assert [row["row_id"] for row in some] == [row["row_id"] for row in others] and len(some) > 100
    names = [name for name in some[0] if name.startswith("p_")]
    pairs = [(a[name], b[name]) for a, b in zip(some, others, strict=True) for name in names]
    return max(abs(float(a) - float(b)) for a, b in pairs)


def spans(rows):
    """{(row id, start, end, type)} of ner's answers."""
    return {(row["row_id"], s["start"], s["end"], s["type"]) for row in rows for s in row["spans"]}


# --- every technique, every task


@on_gpu
@pytest.mark.parametrize("name", RUNS)
def test_every_technique_trains_on_a_gpu_and_answers_as_on_a_cpu(name, arguments, small, tmp_path):
    words = [*arguments, *RUNS[name], "--device", DEVICE, "--out", str(tmp_path)]
    path = train.run_all(train.parse_arguments(words))
    facts = read_json(path / "run.json")
    if facts["history"]:
        losses = [row["TrainingLoss"] for row in facts["history"]]
        assert losses[-1] < losses[0] and facts["precision"] == "bfloat16"
    assert facts["device"].startswith("cpu" if "quantization" in name else DEVICE)
    found = [answers(path, small[0], tmp_path / f"{on}.csv", "--device", on) for on in (DEVICE, "cpu")]
    assert furthest(*found) < 0.05


@on_gpu
@pytest.mark.parametrize("task", OTHER_TASKS)
def test_every_task_trains_on_a_gpu_and_answers_as_on_a_cpu(task, demos, small, tmp_path):
    more = {"ner": ["--crf", "--epochs", "8"], "trials": ["--class-weights"]}.get(task, [])
    words = run_words(demos, task, tmp_path, "--technique", "base", "--device", DEVICE, *more)
    path = train.run_all(train.parse_arguments(words))
    losses = [row["TrainingLoss"] for row in read_json(path / "run.json")["history"]]
    assert losses[-1] < losses[0]
    data = small[0] if task == "ner" else demos[task][0]
    found = [answers(path, data, tmp_path / f"{on}.csv", "--device", on) for on in (DEVICE, "cpu")]
    if task == "ner":
        ours, theirs = map(spans, found)
        assert len(ours & theirs) > 0.8 * len(ours | theirs) > 0
    elif task != "mlm":  # whose texts have no [MASK]
        assert furthest(*found) < 0.05


# --- compiled, interrupted, the same bits


@on_gpu
def test_compiled_training_and_prediction_answer_as_they_do_uncompiled(arguments, small, tmp_path):
    words = [*arguments, "--device", DEVICE, "--compile", "--out", str(tmp_path)]
    path = train.run_all(train.parse_arguments(words))
    losses = [row["TrainingLoss"] for row in read_json(path / "run.json")["history"]]
    assert losses[-1] < losses[0]
    ways = {"plain": [], "compiled": ["--compile"]}
    found = [answers(path, small[0], tmp_path / name, "--device", DEVICE, *way) for name, way in ways.items()]
    assert furthest(*found) < 0.03


@on_gpu
def test_an_interrupted_training_goes_on(arguments, small, tmp_path, monkeypatch, capsys):
    original, count = train.collate, [0]

    def breaks(*words):
        count[0] += 1
        if count[0] == 22:
            raise KeyboardInterrupt
        return original(*words)

    found = []
    for name in ("whole", "broken"):
        call = [*arguments, "--device", DEVICE, "--out", str(tmp_path / name), "--save-minutes", "0"]
        if name == "broken":
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(train, "collate", breaks)
                train.main(call)
            capsys.readouterr()
        train.main(call)
        found.append(
            answers(tmp_path / name / "base", small[0], tmp_path / f"{name}.csv", "--device", DEVICE)
        )
    assert "resuming at epoch 2" in capsys.readouterr().out
    assert furthest(*found) < 0.1


@on_gpu
def test_deterministic_runs_have_equal_bits(arguments, tmp_path):
    words = [*arguments, "--device", DEVICE, "--deterministic", "--epochs", "1"]
    for name in "ab":
        call = [sys.executable, "train.py", *words, "--out", str(tmp_path / name)]
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / name / "base" / "model.safetensors").read_bytes() for name in "ab")
    assert one == two


# --- several processes

NCCL = """
import torch, torch.distributed as dist
from run import processes
dist.init_process_group("nccl", init_method="file://PLACE", rank=0, world_size=1)
x = torch.randn(3, 4, device="cuda", requires_grad=True)
y = processes.Gather.apply(x, 0, 3)
y.square().sum().backward()
assert torch.equal(x, y) and torch.equal(x.grad, 2 * x)
processes.world = lambda: (0, 2)  # or they would do nothing
model = torch.nn.Linear(4, 1).cuda()
processes.averaging(model, lambda batch: model(batch).sum())(x.detach()).backward()
assert torch.allclose(model.weight.grad[0], x.sum(0))
processes.wait_for_all()
assert processes.agreed({"a": [1]}) == {"a": [1]}
processes.same_weights(torch.nn.Linear(2, 2).cuda())
dist.destroy_process_group()
"""


@on_gpu
def test_the_exchange_goes_through_nccl(tmp_path):
    code = NCCL.replace("PLACE", str(tmp_path / "meeting"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@on_gpu
def test_torchrun_trains_on_a_gpu(arguments, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    words = ["train.py", *arguments, "--epochs", "1", "--device", DEVICE, "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "base" / "run.json")["device"].startswith(DEVICE)


# --- less work for the same answers


def logits_and_gradients(model, batch, kind, ours):
    """One pass in bf16, without dropout: logits, gradients end to end, in fp32 on the CPU."""
    task = Task()
    with speedups(model, reads_first=ours), torch.autocast(kind, torch.bfloat16):
        outputs = task.forward(model, batch)
        loss = task.loss(model, batch, outputs)
    loss.backward()
    gradients = torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return outputs.logits.detach().float().cpu(), gradients.cpu()


@on_gpu
@pytest.mark.parametrize("lengths", ([64] * 8, [64, 64, 50, 33, 7, 1, 60, 64]))
def test_ours_in_bf16_is_as_near_to_fp32_as_autocast_is(lengths):
    model = bert_base().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    set_attention_dropout(model, 0.0)
    notes = pack([np.random.default_rng(n).integers(0, 28996, n) for n in lengths], np.arange(8))
    notes.labels = np.arange(8) % 5
    batch = collate(notes, np.arange(8), 0)
    Task().loss(model, batch, Task().forward(model, batch)).backward()
    exact = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    batch = collate(notes, np.arange(8), 0, DEVICE)
    assert ("full" in batch) == (len(set(lengths)) == 1)
    model.to(DEVICE)
    _, ours = logits_and_gradients(model, batch, DEVICE, True)
    batch.pop("full", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "HalfNorm", lambda norm: norm)
        _, plain = logits_and_gradients(model, batch, DEVICE, False)
    errors = [float((gradient - exact).norm() / exact.norm()) for gradient in (ours, plain)]
    assert errors[0] < 1.5 * errors[1] and errors[0] < 0.1, errors


@on_gpu
def test_rows_without_padding_take_the_flash_kernel():
    model = bert_base().to(DEVICE).eval()
    notes = pack([np.arange(100, 164)] * 4 + [np.arange(9)], np.arange(5))
    with torch.inference_mode(), speedups(model, True, frozen=True), torch.autocast(DEVICE, torch.bfloat16):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            flash = Task().forward(model, collate(notes, np.arange(4), 0, DEVICE)).logits
        padded = Task().forward(model, collate(notes, np.arange(5), 0, DEVICE)).logits
    assert torch.allclose(flash.float(), padded[:4].float(), atol=0.02)


def test_a_full_batch_needs_no_mask():
    notes = pack([np.arange(5), np.arange(5), np.arange(3)], np.arange(3))
    batch, model, task = collate(notes, np.arange(2), 0), bert_base(SMALL).eval(), Task()
    assert "full" in batch and "full" not in collate(notes, np.arange(3), 0)
    asked = []
    model.register_forward_pre_hook(
        lambda _, words, keys: asked.append(keys["attention_mask"]), with_kwargs=True
    )
    masked = {name: value for name, value in batch.items() if name != "full"}
    assert torch.equal(task.forward(model, masked).logits, task.forward(model, batch).logits)
    assert asked[0] is not None and asked[1] is None


SMALL = AutoConfig.for_model("bert", vocab_size=50, hidden_size=32, num_hidden_layers=2,
                             num_attention_heads=4, intermediate_size=64, num_labels=3)  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet", "albert", "modernbert", "deberta-v2"])
def test_layer_norms_answer_in_bf16_under_autocast_alone(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=50, hidden_size=32, num_hidden_layers=2,
                                  num_attention_heads=4, intermediate_size=64, pad_token_id=0)  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.randint(1, 50, (3, 9))
    names, plain = list(model.state_dict()), model(ids).logits
    with precision.half_norms(model):
        assert list(model.state_dict()) == names and torch.equal(model(ids).logits, plain)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(ids, output_hidden_states=True)
        outputs.logits.sum().backward()
        norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert all(isinstance(norm, precision.HalfNorm) for norm in norms) and len(norms) > 2
    assert all(norm.weight.grad is not None and norm.weight.grad.dtype == torch.float32 for norm in norms)
    assert outputs.hidden_states[-1].dtype == torch.bfloat16
    assert torch.allclose(outputs.logits.float(), plain, atol=0.02)
    assert not any(isinstance(m, precision.HalfNorm) for m in model.modules())


def test_layer_norms_are_compiled_into_one_graph():
    model, ids = bert_base(SMALL), torch.randint(1, 50, (3, 9))
    with torch.inference_mode(), precision.half_norms(model), torch.autocast("cpu", torch.bfloat16):
        call = torch.compile(model, dynamic=True, backend="eager", fullgraph=True)
        assert torch.allclose(call(ids).logits, model(ids).logits, atol=0.02)
