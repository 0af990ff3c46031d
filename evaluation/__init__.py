"""Tasks, metrics with intervals and chance levels, the split guard, reports and search over feature sets."""
