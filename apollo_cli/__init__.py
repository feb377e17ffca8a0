"""Apollo: pretrain BERT, GPT and LLaMA while their depth grows, and say how much that saved."""

__version__ = "0.2.0"
