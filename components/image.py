"""The container image of every component; a place may name another (`Place.image`)."""

from data.place import Place

IMAGE: str = Place.model_fields["image"].default
