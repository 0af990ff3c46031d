"""Curation: which pairs of a pool to train on, decided exactly, shard by shard, and explained pair by pair."""
