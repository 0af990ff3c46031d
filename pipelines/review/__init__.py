"""Looking back at runs: list, compare, repeat, one page over all, W&B."""
