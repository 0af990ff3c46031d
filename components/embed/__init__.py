"""The `embed` component."""
