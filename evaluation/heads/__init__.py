"""Heads: what turns image_features into class scores, fitted on one split and tuned on another."""
