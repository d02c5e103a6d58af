"""AdamW and clipping for short texts."""

import torch


class AdamW(torch.optim.AdamW):
    """AdamW that, of a parameter with a sparse gradient, visits only the rows that have one.

    A batch of short notes names some hundred of an embedding table's 30,000 rows; a dense step would read and write them all,
    moments too. Rows that are absent keep value and moments until they come again ("lazy" Adam, as torch.optim.SparseAdam),
    where dense AdamW would go on moving and decaying them.
    """

    @torch.no_grad()
    def step(self):
        """One step; gradients that are sparse must be coalesced."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._step_rows(parameter, group)
                    parameter.grad = None
        super().step()

    def _step_rows(self, parameter, group):
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state["step"] += 1
        rows, gradient = parameter.grad._indices()[0], parameter.grad._values()  # (R,), (R, width)
        mean = state["exp_avg"][rows].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        step = state["step"].item()
        change = (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt_() + group["eps"])
        parameter[rows] = parameter[rows] * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * change


def sparse_rows(model, tokens):
    """Let the word embeddings have sparse gradients, where that pays: on a CPU, in a table much larger than a batch has tokens
    that no output layer shares."""  # fmt: skip
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = output is not None and output.weight is getattr(table, "weight", None)
    pays = isinstance(table, torch.nn.Embedding) and table.weight.device.type == "cpu" and table.num_embeddings > 2 * tokens
    if pays and table.weight.requires_grad and not tied:
        table.sparse = True


@torch.no_grad()
def clip_gradients(weights, limit):
    """Scale all gradients, sparse ones too, so that their norm together is at most `limit`."""
    for weight in weights:
        if weight.grad is not None and weight.grad.is_sparse:
            weight.grad = weight.grad.coalesce()
    values = [w.grad._values() if w.grad.is_sparse else w.grad for w in weights if w.grad is not None]
    scale = limit / (torch.nn.utils.get_total_norm(values) + 1e-6)
    if scale.device.type != "cpu" or scale < 1:  # a GPU is not made to wait for the comparison
        torch._foreach_mul_(values, scale.clamp(max=1))
