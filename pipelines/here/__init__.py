"""A run on this machine: its processes, its Ray, its containers, its logs."""
