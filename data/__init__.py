"""Tokenizing, shards, order, packing and objectives; knows no cluster and no model."""
