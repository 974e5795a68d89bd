"""Released checkpoints in, our models out: GPT-2, Llama, Qwen2, Qwen3, BERT, RoBERTa and ModernBERT as folders of the
Hugging Face kind. `load.load` and `save.save` are the two ways; each family is one file of key maps, which are data.
"""
