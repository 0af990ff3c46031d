"""The text given to the LLM for one rewrite, and the rewrite read from its answer.

LaCLIP's form (arXiv 2305.20088): one instruction, a few `source => target` lines drawn without replacement, the caption
with an open arrow. Everything is a function of (caption, attempt, seed).
"""

import hashlib
from typing import NamedTuple

from data.rewrite.examples import EXAMPLES, Example
from data.specs import RewriteSpec

ARROW = "=>"
INSTRUCTION = "Say what each picture shows, with the same words and nothing else."
MAX_SOURCE_CHARS = 1_000  # longer sources would not fit a slot's context with the examples


MENUS = 8  # draws of examples that captions share: asked menu by menu, a server has read most of each prompt before


class Request(NamedTuple):
    """One rewrite to ask for; `key` names it in the journal."""

    key: str
    prompt: str
    seed: int
    menu: int


def request_of(caption: str, attempt: int, spec: RewriteSpec) -> Request:
    """The request for this caption's rewrite number `attempt`."""
    key = _digest(f"{attempt}:{caption}").hex()
    bits = int.from_bytes(_digest(f"{spec.seed}:{key}")[:8], "big")
    menu = bits % MENUS
    shots = choose_examples(EXAMPLES[spec.examples], spec.shots, f"{spec.seed}:{menu}")
    return Request(key, prompt_of(caption, shots), bits >> 33, menu)


def choose_examples(examples: tuple[Example, ...], shots: int, salt: str) -> list[Example]:
    """`shots` examples without replacement, in random order, by hash."""
    return sorted(examples, key=lambda example: _digest(f"{salt}:{example[0]}"))[:shots]


def prompt_of(caption: str, shots: list[Example]) -> str:
    """Instruction, examples, and the caption with an open arrow."""
    lines = [f"{source} {ARROW} {target}" for source, target in shots]
    return "\n".join([INSTRUCTION, "", *lines, f"{one_line(caption)} {ARROW}"])


def prompt_id(spec: RewriteSpec) -> str:
    """Names the instruction and the example set: the same id, the same words."""
    words = "\n".join([INSTRUCTION, *(f"{source} {ARROW} {target}" for source, target in EXAMPLES[spec.examples])])
    return f"{spec.examples}-{_digest(words).hex()[:8]}"


def read_completion(text: str) -> str:
    """The rewrite: the first line, without the quotes a model likes to put around it."""
    line = one_line(text.lstrip().split("\n", 1)[0])
    for mark in ('"', "'", "`", "*"):
        if len(line) > 1 and line.startswith(mark) and line.endswith(mark):
            line = line.strip(mark).strip()
    return line


def one_line(text: str) -> str:
    """Runs of white space as one space."""
    return " ".join(text.split())


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
