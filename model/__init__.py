"""Transformers in plain torch: GPT, BERT and their modern variants, built from one configured body.

    config.py         ModelConfig: all options of a model; imports no torch
    transformer.py    embeddings, blocks, and the language model; its parts are in layers.py, rotary.py and heads.py
    loss.py           cross-entropy of a large vocabulary without all logits in memory
    initialization.py first values of all parameters, from a seed
    tensor_plan.py    the tensor-parallel plan, as data
    attention/        the attention function, its back-ends, masks and the key-value cache
    generation/       text generation: sampling, streaming, mask filling
    finetuning/       task heads, adapters, soft prompts, adversarial training, distillation
    huggingface/      released checkpoints: load and save, with one file for each model family
    costs/            parameters, FLOPs and memory of a configuration

Nothing is imported here, so that `ingot.model.config` can be read (by a `--help`) without torch.
"""
