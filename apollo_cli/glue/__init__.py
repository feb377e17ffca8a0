"""Fine-tuning of pretrained models on GLUE, with the official metrics."""
