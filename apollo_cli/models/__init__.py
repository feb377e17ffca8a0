"""BERT and GPT as torch modules, their FLOPs and memory in closed form, and transformers' file format."""
