"""Sweeps: many trials of one recipe on Ray Tune, each with other values, chosen by a number that judges nothing."""
