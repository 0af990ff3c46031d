"""Pairs, shards, storage, artifacts, curation, captions, feature sets: what is read and written, without a model."""
