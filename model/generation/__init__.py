"""Text generation: sampling, streaming of text, and filling of masks."""
