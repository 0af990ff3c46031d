"""The cards that were committed: in a checkout below docs/methods, in an installed package beside the methods."""

from collections.abc import Iterable
from pathlib import Path

from data import storage
from pipelines import methods
from pipelines.reproduction.card import Card, read_card
from pipelines.reproduction.running import CARDS


def find_card(name: str, folder: str | None = None) -> Card | None:
    """The card of a method in this folder, or that which was committed; None for one that was not measured."""
    places = [folder] if folder else _committed()
    return next((card for place in places if (card := read_card(storage.join(place, f"{name}.json")))), None)


def _committed() -> Iterable[str]:
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        yield str(checkout / CARDS)
    for folder in methods.__path__:
        yield str(Path(folder, "measured"))
