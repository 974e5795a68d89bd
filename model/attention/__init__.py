"""Attention: one function, its back-ends, masks, and the key-value cache."""
