"""Recipes, the graph, the plan, local runs and the `clipworks` command; torch, ray and kfp only inside functions."""
