"""In which precision a model trains, and its dropout of attention probabilities."""

import torch

from fast import attention


def training_precision(precision, device):
    """torch.bfloat16 or torch.float32 for --precision on a device."""
    fast = device.type == "cuda" or (device.type == "cpu" and attention.multiplies_bf16())
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and fast) else torch.float32


def set_attention_dropout(model, probability):
    """Set, in place, the dropout of attention probabilities: of modules named SelfAttention as in BERT, MPNet and DeBERTa, and of
    those that hold it as attention_dropout, as in ModernBERT and ALBERT."""  # fmt: skip
    for key in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(model.config, key):
            setattr(model.config, key, probability)
    for module in model.modules():
        for name in ("dropout", "attention_dropout"):
            inner = getattr(module, name, None)
            if inner is None or (name == "dropout" and "SelfAttention" not in type(module).__name__):
                continue
            if isinstance(inner, torch.nn.Dropout):
                inner.p = probability
            elif name == "attention_dropout" and isinstance(inner, float):
                module.attention_dropout = probability
