"""What makes two pairs alike, one file a kind: each returns a partition of the pairs (data.curation.groups)."""
