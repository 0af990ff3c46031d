"""The `inspect` component."""
