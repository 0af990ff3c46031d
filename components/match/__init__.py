"""The `match` component."""
