"""How tensors and settings of a released checkpoint are mapped to a model, in both directions."""
