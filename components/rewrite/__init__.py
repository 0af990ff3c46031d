"""The `rewrite` component."""
