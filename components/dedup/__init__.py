"""The `dedup` component."""
