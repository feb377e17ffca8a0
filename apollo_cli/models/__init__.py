"""BERT and GPT as our own modules, their FLOPs, and their form in transformers."""
