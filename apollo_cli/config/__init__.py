"""The typed config: its sections and the rules that join them."""
