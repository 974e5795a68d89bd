"""Tokenizers, corpora, data order, packing and objectives. Nothing here knows a cluster or a model."""
