"""The same numbers, sooner. `speedups` puts everything that patches a model on, and takes it off again.

attention.py   the last layer for [CLS] alone; queries, keys and values by one product; bf16 products
cpu.py         products by the faster library, freed memory kept
dropout.py     dropout by random numbers that cost less, for training on a CPU
int8.py        int8 products by oneDNN's own call, with what follows them
lean.py        a layer's parts called directly, for reading
optimizer.py   lazy AdamW: only the embedding rows of the batch
precision.py   in which precision a model trains and reads; layer norms in bf16
"""

import contextlib

from fast import attention, cpu, dropout, int8, lean, optimizer, precision


@contextlib.contextmanager
def speedups(model, reads_first=False, bf16_attention=None, frozen=False, onednn=None, tokens_per_step=None):
    """While open, the model does the same with less work; afterwards every module is as before. Yields it.

    reads_first: the head reads the first token alone, so the last layer answers for no other.
    bf16_attention: a name in attention.BF16, for CPUs that multiply bf16; else the model's own attention.
    frozen: the weights do not change while it is open, so they may be laid out anew.
    onednn: of frozen weights, whether products are oneDNN's; None = time it.
    tokens_per_step: in training, tokens per step; decides whether embeddings get sparse gradients.
    """
    with contextlib.ExitStack() as patches:
        patches.enter_context(attention.implementation(model, bf16_attention))
        if reads_first or frozen:
            patches.enter_context(attention.less_work(model, reads_first, joined=frozen))
        patches.enter_context(precision.half_norms(model))
        if frozen:
            patches.enter_context(cpu.faster_products(model, onednn))
            patches.enter_context(int8.faster_int8(model))
            patches.enter_context(lean.lean_layers(model))
        else:
            patches.enter_context(dropout.cheap_dropout(model))
        if tokens_per_step:
            patches.enter_context(optimizer.sparse_embeddings(model, tokens_per_step))
        yield model
