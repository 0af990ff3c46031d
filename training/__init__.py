"""Towers, surgeries, objectives, teachers, loading, the one loop, checkpoints, embedding and tracking."""
