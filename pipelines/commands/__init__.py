"""The commands, by family: each module adds its parsers with `add_commands`, and holds what they do.

A command is a function of its parsed options that returns the exit code. Nothing heavy is imported before it runs.
"""

FAMILIES = ("recipes", "pairs", "evaluations", "methods", "runs", "sweeps", "cluster")
