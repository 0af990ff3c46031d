"""The measured claims: each module is a command, `python -m benchmarks.NAME`, that prints a ratio to a baseline."""
