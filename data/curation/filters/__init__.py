"""Filters: rows in, what was judged and whether it may stay out. Each judges a pair by itself, never by its neighbours.

To add one: a spec in `data/curation/specs.py`, a file here with a class like the others, a line in `_FILES`, a test.
"""

import importlib

from data.curation.filters.base import FilterFunction, Verdict
from data.curation.specs import Filter

__all__ = ["FilterFunction", "Verdict", "build_filter"]

_FILES = {
    "caption_length": "caption_length.CaptionLength",
    "caption_characters": "caption_characters.CaptionCharacters",
    "caption_repetition": "caption_repetition.CaptionRepetition",
    "language": "language.Language",
    "decodable": "decodable.Decodable",
    "image_size": "image_size.ImageSize",
    "aspect_ratio": "aspect_ratio.AspectRatio",
    "sharpness": "sharpness.Sharpness",
    "entropy": "entropy.Entropy",
    "meta_number": "meta_number.MetaNumber",
    "meta_flag": "meta_flag.MetaFlag",
    "meta_value": "meta_value.MetaValue",
    "url_domain": "url_domain.UrlDomain",
    "clip_score": "clip_score.ClipScore",
}


def build_filter(spec: Filter) -> FilterFunction:
    """Import and make the filter a spec names."""
    module, _, name = _FILES[spec.filter].partition(".")
    made: FilterFunction = getattr(importlib.import_module(f"data.curation.filters.{module}"), name)(spec)
    return made
