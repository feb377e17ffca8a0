"""Where rows go: metrics.jsonl, the terminal, Weights & Biases."""
