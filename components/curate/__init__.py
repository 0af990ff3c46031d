"""The `curate` component."""
