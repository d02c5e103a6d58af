"""An interrupted run: one safetensors file with all that training needs to go on."""

import json
import os
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file

import files


def save_progress(path, position, model, best, optimizer):
    """One safetensors file with all that training needs to go on: weights, best weights, moments, random state."""
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors.update({f"best/{k}": v for k, v in (best or {}).items()})
    for index, moments in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer/{index}/{name}": value for name, value in moments.items()})
    tensors["random/cpu"] = torch.get_rng_state()
    for name in ("cuda", "mps"):
        if getattr(torch, name).is_available():
            tensors[f"random/{name}"] = getattr(torch, name).get_rng_state()
    temporary = Path(path).with_suffix(".tmp")
    save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, temporary, {"position": json.dumps(position)})
    os.replace(temporary, path)


def read_position(path):
    """The JSON position that save_progress stored, or None if there is no progress file."""
    if not Path(path).exists():
        return None
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["position"])


def load_progress(path, model, optimizer):
    """Put weights, moments and random state back as they were. Returns the best weights so far, or None."""
    parts = {"model": {}, "best": {}, "optimizer": {}, "random": {}}
    for key, value in load_file(path).items():
        part, _, name = key.partition("/")
        parts[part][name] = value
    model.load_state_dict(parts["model"])
    state = optimizer.state_dict()
    for key, value in parts["optimizer"].items():
        index, name = key.split("/")
        state["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(state)
    torch.set_rng_state(parts["random"]["cpu"])
    for name in ("cuda", "mps"):
        if name in parts["random"] and getattr(torch, name).is_available():
            getattr(torch, name).set_rng_state(parts["random"][name])
    return parts["best"] or None


def settle_progress(path, arguments):
    """Keep an unfinished run's progress if it was made with these arguments, else start anew."""
    description = path.with_suffix(".json")
    if path.exists() and description.exists() and files.read_json(description) == arguments:
        position = read_position(path)
        print(f"resuming at epoch {position['epoch'] + 1}, step {position['step'] + 1}")
        return
    path.unlink(missing_ok=True)
    files.write_json(description, arguments)
