"""The `model` component."""
