"""The key-value cache: keys and values of earlier tokens, so that generation computes only the new ones.

Legend: B batch, T new tokens, S tokens so far, K key and value heads, E head dim.
"""

from __future__ import annotations

from torch import Tensor


class LayerCache:
    """Keys and values of one layer. The memory for `capacity` tokens is allocated at the first use."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self._k_BSKE: Tensor | None = None
        self._v_BSKE: Tensor | None = None

    def append(self, k_BTKE: Tensor, v_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the keys and values of the new tokens; returns those of all tokens so far, (B, S, K, E) each."""
        if self._k_BSKE is None or self._v_BSKE is None:
            batch, _, *head = k_BTKE.shape
            self._k_BSKE = k_BTKE.new_empty(batch, self.capacity, *head)
            self._v_BSKE = v_BTKE.new_empty(batch, self.capacity, *head)
        end = self.length + k_BTKE.shape[1]
        assert end <= self.capacity, f"{end} tokens in a cache of capacity {self.capacity}"
        self._k_BSKE[:, self.length : end] = k_BTKE
        self._v_BSKE[:, self.length : end] = v_BTKE
        self.length = end
        return self.seen()

    def seen(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens so far, (B, S, K, E) each."""
        assert self._k_BSKE is not None
        assert self._v_BSKE is not None
        return self._k_BSKE[:, : self.length], self._v_BSKE[:, : self.length]


class KeyValueCache:
    """One `LayerCache` for each layer of a model. Between two forwards all have the same number of tokens."""

    def __init__(self, num_hidden_layers: int, capacity: int):
        self.layers = [LayerCache(capacity) for _ in range(num_hidden_layers)]

    @property
    def length(self) -> int:
        """Number of tokens so far."""
        return self.layers[0].length
