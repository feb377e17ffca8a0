"""One run: plan, data, model, loop, export, summary."""
