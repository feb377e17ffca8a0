"""GLUE: pretrained models fine-tuned on sentences, with the official metrics."""
