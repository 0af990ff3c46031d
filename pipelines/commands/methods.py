"""Commands about published methods: methods list, show and index; reproduce."""

import argparse
import json
import sys

from data import storage
from pipelines.commands.options import Add, make_console, place_options, read_place

_METHODS_EXAMPLES = """examples:
  clipworks methods                                 every method, and what was measured of it
  clipworks methods show long_clip                  claim, formula, deviations, limiting cases, measured effect
  clipworks methods show long_clip --json --cards runs/methods
"""
_REPRODUCE_EXAMPLES = """Method, parent and controls are trained with every seed and compared seed by seed. It is one
recipe: a killed run goes on with the same command, and more seeds add to what is there. Without --place it runs on one
rank with all CPUs of this machine and needs no Ray; a place file says otherwise (`ranks: ray`, `train_workers: 4`,
`gpus_per_worker: 1`).

examples:
  clipworks reproduce long_clip --seeds 5
  clipworks reproduce long_clip --seeds 2 --root runs --out my/cards
  clipworks reproduce long_clip --place place.yaml --root s3://bucket/clipworks
"""
_CARDS_HELP = "folder of cards that `reproduce` wrote; default: those that come with clipworks"


def add_commands(add: Add) -> None:
    """Commands about published methods."""
    methods = add(
        "methods", help="list the published methods with their measured effects, or show one whole",
        epilog=_METHODS_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    methods.set_defaults(do=methods_list, json=False, cards=None)
    actions = methods.add_subparsers(dest="action", metavar="list|show|index")
    listed = actions.add_parser("list", help="names, papers and effects (the default)")
    listed.set_defaults(do=methods_list)
    show = actions.add_parser("show", help="claim, formula, deviations, recipe, limiting cases, measured effect")
    show.add_argument("method", metavar="NAME", help="a method's name (`clipworks methods` lists them)")
    show.set_defaults(do=methods_show)
    for parser in (listed, show):
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument("--cards", metavar="DIR", help=_CARDS_HELP)
    index = actions.add_parser("index", help="write README.md, the table of all cards, into a folder of cards")
    index.add_argument("cards", metavar="DIR", nargs="?", default="docs/methods", help="default: docs/methods")
    index.set_defaults(do=methods_index)
    _add_reproduce(add)


def _add_reproduce(add: Add) -> None:
    parser = add(
        "reproduce", help="put a method's claim to the test against its parent and controls; writes its card",
        epilog=_REPRODUCE_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("method", metavar="NAME", help="a method's name (`clipworks methods` lists them)")
    parser.add_argument("--seeds", type=int, default=5, help="how many, at least 2 (default: 5)")
    place_options(parser, "default: the place's, else `runs`")
    parser.add_argument(
        "--out", metavar="DIR", help="folder for NAME.html and NAME.json; default: docs/methods if it is there, else "
        "`methods` below the root",
    )  # fmt: skip
    parser.set_defaults(do=reproduce)


def methods_list(options: argparse.Namespace) -> int:
    """List the methods."""
    from pipelines.methods import load_method, method_names
    from pipelines.reproduction import text
    from pipelines.reproduction.measured import find_card

    listed = [(load_method(name), find_card(name, options.cards)) for name in method_names()]
    if not options.json:
        text.show_list(listed, make_console())
        return 0
    told = [
        {"name": method.name, "title": method.title, "paper": method.paper, "head": card and card.head,
         "effect": card and card.effect}
        for method, card in listed
    ]  # fmt: skip
    sys.stdout.write(json.dumps(told, ensure_ascii=False, indent=1) + "\n")
    return 0


def methods_show(options: argparse.Namespace) -> int:
    """Show one method."""
    from pipelines.methods import load_method
    from pipelines.reproduction import text
    from pipelines.reproduction.measured import find_card

    method = load_method(options.method)
    card = find_card(method.name, options.cards)
    if options.json:
        sys.stdout.write(json.dumps(text.as_json(method, card), ensure_ascii=False, indent=1) + "\n")
    else:
        text.show_method(method, card, make_console())
    return 0


def methods_index(options: argparse.Namespace) -> int:
    """Write the table of all cards."""
    from pipelines.methods import load_method, method_names
    from pipelines.reproduction import text
    from pipelines.reproduction.measured import find_card

    listed = [(load_method(name), find_card(name, options.cards)) for name in method_names()]
    uri = storage.join(storage.normalise(options.cards), "README.md")
    storage.write_bytes(uri, text.index_text(listed).encode())
    sys.stdout.write(f"{uri}\n")
    return 0


def reproduce(options: argparse.Namespace) -> int:
    """Put a method's claim to the test."""
    from pipelines.methods import load_method
    from pipelines.reproduction import running, text

    method, place = load_method(options.method), read_place(options)
    if options.place is None:
        place = place.model_copy(update={"ranks": "local", "loader_workers": 0})
    console = make_console()
    folder = options.out or running.default_folder(place.root)
    card, paths = running.reproduce(method, options.seeds, place, folder, options.again, console)
    console.print()
    text.show_card(card, console)
    for path in paths:
        console.print(f"\ncard: {path}" if path == paths[0] else f"      {path}", markup=False, highlight=False,
                      soft_wrap=True)  # fmt: skip
    return 0
