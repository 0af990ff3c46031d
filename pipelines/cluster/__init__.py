"""Runs on a cluster: handing in, following, repairing, ending."""
