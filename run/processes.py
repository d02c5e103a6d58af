"""One run in several processes, as torchrun starts them: the rows of every batch are dealt out to them.

torchrun --nproc_per_node=2 train.py --technique lowrank

Of a batch of N rows, process r of W encodes rows N r / W to N (r + 1) / W. Every process then gathers the
hidden states h of all rows, and computes the head and the loss L of the whole batch from them. So no task
and no technique knows of it, whatever its loss is a mean over. Backward, a process has dL/dh of all rows
and passes on that of its own, times W: the mean of the gradients over the processes is then the batch's,
for weights within the encoder and outside. torch's DistributedDataParallel takes that mean, while the
backward pass goes on; alone, it would take the mean of the losses of shares of the batch, which is not the
batch's if they hold unequal numbers of words. Dropout in the encoder draws the batch's whole mask everywhere
and takes its rows. So one process and several make the same steps, but for rounding.

What it does not save: memory for weights and moments, of which every process holds all; the head and the
teacher's remembered answers, which every process computes and keeps for itself.
"""

import contextlib
import datetime
import os
import signal
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cli import BadInput
from fast.dropout import drawn_factors
from layers import exchanged


class Ended(BadInput):
    """This process cannot go on alone."""

    def __init__(self):
        super().__init__(
            "another process of this run has ended, or torchrun was stopped; the same command goes on"
        )


def world():
    """(this process's rank, number of processes): (0, 1) unless torchrun started several."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_first():
    """Whether this is the process that writes and prints."""
    return world()[0] == 0


@contextlib.contextmanager
def joined(device="auto"):
    """While open, the processes that torchrun started are one group; a process alone has nothing to join.

    Only the first one prints. If one fails, one of them says why. device: the run's --device.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    wait = datetime.timedelta(hours=4)  # the first may tokenise for long before the others hear of it
    store, rank, count = next(dist.rendezvous("env://", timeout=wait))
    # workers that --max-restarts started must not find the addresses that the ones before them left
    store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, timeout=wait, store=store, rank=rank, world_size=count)
    shown = sys.stdout, sys.stderr
    before = signal.signal(signal.SIGTERM, stopped)
    try:
        with open(os.devnull, "w") as nowhere:
            if not is_first():
                sys.stdout = sys.stderr = nowhere
            try:
                yield
            finally:
                sys.stdout, sys.stderr = shown
    except (BadInput, RuntimeError) as error:
        raise said_once(error) from None
    finally:
        # torchrun stops all once one has failed; this one shall still say why
        signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.exc_info()[0] else before)
        dist.destroy_process_group()


def stopped(*_):
    """torchrun stops this process, because another one of the run is gone or because it is stopped itself."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Ended


def said_once(error):
    """The error as this process shall end with it: the first of all to fail says why, the others nothing."""
    lost = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in ("gloo", "nccl"))
    if isinstance(error, RuntimeError) and not lost:
        return error
    try:
        first = dist.distributed_c10d._get_default_store().add("failed", 1) == 1
    except RuntimeError:  # the store is gone, and whoever held it
        first = False
    if not first:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of this process
    return Ended() if lost else error


def wait_for_all():
    """Return when every process has come here."""
    if world()[1] > 1:
        dist.barrier()


@contextlib.contextmanager
def first_before_others():
    """The block is run by the first process, then by the others, which find the files that it wrote."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def agreed(value):
    """What the first process has, a small object of JSON's kinds, in all of them."""
    if world()[1] == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


@torch.no_grad()
def same_weights(model):
    """The model, with the first process's weights in all: machines differ in the last digits of an SVD."""
    if world()[1] > 1:
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.data, 0)
    return model


# --- one batch in several processes --------------------------------------------------------------------


@contextlib.contextmanager
def dealt_out(model):
    """While open, the rows that the model's encoder reads are dealt out to the processes.

    One process alone, or a model whose rows are dealt out already, is left as it is. So is an int8 model: its
    activations take one scale for all rows that a layer sees, so fewer rows would give other answers.
    """
    encoder, deal = model.base_model, Deal()
    already = any(
        isinstance(getattr(hook, "__self__", None), Deal) for hook in encoder._forward_hooks.values()
    )
    if world()[1] == 1 or already:
        yield model
        return
    dropouts = {name: m for name, m in model.named_modules() if type(m) is nn.Dropout and within(name, model)}
    places = {name: SharedDropout(module.p, deal).train(module.training) for name, module in dropouts.items()}
    hooks = (
        encoder.register_forward_pre_hook(deal.take_rows, with_kwargs=True),
        encoder.register_forward_hook(deal.gather_rows),
    )
    try:
        with exchanged(model, places):
            yield model
    finally:
        for hook in hooks:
            hook.remove()


def within(name, model):
    """Whether a module's name is one in the model's encoder."""
    return name.startswith(f"{model.base_model_prefix}.")


class Deal:
    """Which rows of the batch that is being read are this process's: start to stop of `rows`."""

    start = stop = rows = 0

    def take_rows(self, _, arguments, keywords):
        """Before the encoder: its inputs, cut to this process's rows, or to a spare one if it has none."""
        rank, count = world()
        tensors = [value for value in (*arguments, *keywords.values()) if torch.is_tensor(value)]
        self.rows = tensors[0].shape[0]
        self.start, self.stop = (self.rows * r // count for r in (rank, rank + 1))
        rows = slice(self.start, max(self.stop, self.start + 1))

        def cut(value):
            return value[rows] if torch.is_tensor(value) and value.shape[:1] == (self.rows,) else value

        return tuple(map(cut, arguments)), {name: cut(value) for name, value in keywords.items()}

    def gather_rows(self, encoder, arguments, outputs):
        """After the encoder: the same outputs of all rows of the batch."""
        if torch.is_tensor(outputs):
            return Gather.apply(
                outputs[: self.stop - self.start], self.start, self.rows
            )  # (n, ...) -> (N, ...)
        if isinstance(outputs, dict):  # transformers' outputs
            return type(outputs)(**{n: self.gather_rows(encoder, arguments, v) for n, v in outputs.items()})
        if isinstance(outputs, (tuple, list)):
            return tuple(self.gather_rows(encoder, arguments, value) for value in outputs)
        return outputs


class Gather(torch.autograd.Function):
    """Rows of this process (n, ...) -> the rows of all processes (N, ...)."""

    @staticmethod
    def forward(ctx, own, start, rows):
        """Pad to the largest share, exchange, cut."""
        count = world()[1]
        ctx.start, ctx.stop, ctx.count = start, start + len(own), count
        sizes = [rows * (r + 1) // count - rows * r // count for r in range(count)]
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient):
        """The gradient of this process's rows, times the number of processes, by which the mean divides."""
        return gradient[ctx.start : ctx.stop] * ctx.count, None, None


class SharedDropout(nn.Dropout):
    """Dropout of this process's rows by the mask that one process would draw for the whole batch."""

    def __init__(self, p, deal):
        super().__init__(p)
        self.deal = deal

    def forward(self, x):
        """x (n, ...) -> (n, ...)."""
        if not self.training or not self.p:
            return x
        factors = drawn_factors((self.deal.rows, *x.shape[1:]), self.p, x)
        return x * factors[self.deal.start : self.deal.start + len(x)]


class BatchLoss(nn.Module):
    """The loss of a batch as one module, which holds the model: what DistributedDataParallel wraps."""

    def __init__(self, model, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch):
        """A batch's tensors -> its loss, a scalar."""
        return self.loss(batch)


def averaging(model, loss):
    """The loss (batch -> scalar) of the model; its backward pass takes the mean of the gradients of all.

    Every weight that is trained must have a part in the loss; torch raises RuntimeError if one has none.
    """
    if world()[1] == 1:
        return loss
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*deprecated")  # its heir came in 2.13
        # buffers, such as pruning's masks, are made alike everywhere and need not be sent before every batch
        return DistributedDataParallel(BatchLoss(model, loss), broadcast_buffers=False)


def exchanging(loss, last):
    """The context of a batch's forward pass: gradients are exchanged after the last batch of a step."""
    return contextlib.nullcontext() if last or world()[1] == 1 else loss.no_sync()
