"""Lazy AdamW for short texts: only the embedding rows of the batch are updated.

A batch of short notes holds a few hundred of an embedding table's 30,000 rows; a dense step reads and writes
them all, moments too. Here rows that are absent keep their value and moments until they come again, as in
torch.optim.SparseAdam; dense AdamW would go on moving and decaying them.
"""

import contextlib

import torch


class LazyAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter, 2019) that of a sparse gradient updates only the rows in it."""

    @torch.no_grad()
    def step(self):
        """One step; sparse gradients must be coalesced."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._step_rows(parameter, group)
                    parameter.grad = None
        super().step()

    def _step_rows(self, parameter, group):
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state.update(step=torch.tensor(0.0))
            state.update(exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state["step"] += 1
        rows, gradient = parameter.grad._indices()[0], parameter.grad._values()  # (R,), (R, width)
        mean = state["exp_avg"][rows].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        step = state["step"].item()
        change = (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt_() + group["eps"])
        parameter[rows] = parameter[rows] * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * change


@contextlib.contextmanager
def sparse_embeddings(model, tokens):
    """Sparse gradients for the word embeddings while open, where that pays.

    It pays on a CPU, in a table of over twice as many rows as a step has tokens, that no output layer shares.
    """
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = output is not None and output.weight is getattr(table, "weight", None)
    dense = isinstance(table, torch.nn.Embedding) and not table.sparse
    pays = dense and table.weight.device.type == "cpu" and table.num_embeddings > 2 * tokens
    chosen = pays and table.weight.requires_grad and not tied
    if chosen:
        table.sparse = True
    try:
        yield model
    finally:
        if chosen:
            table.sparse = False


def total_norm(tensors):
    """The norm of tensors together, a scalar. On a CPU by products, which read them faster than norms do."""
    if tensors[0].device.type != "cpu":
        return torch.nn.utils.get_total_norm(tensors)
    return torch.stack([torch.dot(x.flatten(), x.flatten()) for x in tensors]).sum().sqrt()


@torch.no_grad()
def clip_gradients(weights, limit):
    """Scale all gradients, sparse ones too, so that their norm together is at most `limit`."""
    for weight in weights:
        if weight.grad is not None and weight.grad.is_sparse:
            weight.grad = weight.grad.coalesce()
    values = [w.grad._values() if w.grad.is_sparse else w.grad for w in weights if w.grad is not None]
    scale = limit / (total_norm(values) + 1e-6)
    if scale.device.type != "cpu" or scale < 1:  # a GPU is not made to wait for the comparison
        torch._foreach_mul_(values, scale.clamp(max=1))
