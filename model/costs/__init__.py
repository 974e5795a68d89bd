"""What a model costs: its parameters, FLOPs and memory."""
