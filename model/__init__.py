"""From-scratch transformers in plain torch: GPT, BERT and what lies between, from one configured body.

Nothing is imported here, so that `model.config` can be read (by a `--help`) without torch.
"""
