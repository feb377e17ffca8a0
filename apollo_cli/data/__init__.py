"""From text to packed rows of tokens, and from rows to batches."""
