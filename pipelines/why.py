"""Prints what is known of a pair: `clipworks why UID [--run RUN]`. Plain lines that fit a screen."""

import json
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from data.curation.explanation import KEPT, OUTSIDE, Decision, Explanation, FilterResult, Group, Use
from data.curation.located import Located
from data.curation.plain import as_json, one_line, visible
from data.curation.tables import DRAWN_OUT, DUPLICATE, NO_CAPTION, PROTECTED, UNMATCHED
from data.curation.why import explain_pair
from pipelines.runs import read_run

_MOST_LINES = 12  # of entries, and of members of a group
_LONGEST = 240
_USES = {
    "trained": "was trained on",
    "initialised": "starts from a checkpoint that was trained on",
    "derived": "was not trained on this selection, but something behind it was made with it",
}


def explain(root: str, uid: str, run: str | None, selection_uri: str | None) -> Explanation:
    """Explain a pair by what is below a root, or by the artifacts of one run.

    Raises:
        RecipeError: no such run.
    """
    return explain_pair(root, uid, selection_uri, run_artifacts(root, run) if run else None)


def run_artifacts(root: str, run: str) -> frozenset[str]:
    """Names of the artifacts that a run is made of."""
    return frozenset(stage.artifact for stage in read_run(root, run).stages.values() if stage.artifact)


def as_text(explanation: Explanation) -> str:
    """The explanation as indented JSON."""
    return json.dumps(as_json(explanation), indent=1, ensure_ascii=False) + "\n"


def print_explanation(explanation: Explanation, write: Callable[[str], object], width: int = 100) -> None:
    """Write lines of at most `width` characters; nothing in them is obeyed by a terminal."""
    wrapper = textwrap.TextWrapper(width, subsequent_indent=" " * 13)
    for line in map(visible, _lines(explanation)):
        for part in wrapper.wrap(line) or [""]:
            write(part + "\n")


def _lines(explanation: Explanation) -> Iterator[str]:
    yield explanation.uid
    for place in explanation.places:
        yield from _place_lines(place)
    for decision in explanation.selections:
        yield ""
        yield from _decision_lines(decision)
    if not explanation.selections:
        yield "  no selection has judged it"
    for name in explanation.unread:
        yield f"  {name}: made by an older clipworks; make it again to see what it decided"


def _place_lines(place: Located) -> Iterator[str]:
    seen = place.picture
    sides = f", {seen['width']} x {seen['height']} pixels" if seen.get("width") else ""
    problem = f", {seen['problem']}" if seen.get("problem") else ""
    yield f"  lies in    {place.shard_set}, shard {place.shard}, pair {place.row}"
    yield f"  picture    {place.ext}, {place.bytes:,} bytes from byte {place.offset:,}{sides}{problem}"
    yield f"  tar        {place.url}"
    for name, split in place.splits.items():
        yield f"  split      {split} ({name})"
    for caption in place.captions:
        beside = "" if caption.artifact == place.shard_set else f" ({caption.artifact})"
        yield f"  caption    {caption.source}: {one_line(caption.caption, _LONGEST)}{beside}"
    if not place.captions:
        yield "  caption    none"
    if place.meta:
        yield f"  metadata   {', '.join(f'{name}={_value(value)}' for name, value in place.meta.items())}"


def _decision_lines(decision: Decision) -> Iterator[str]:
    yield f"{decision.selection}: {_sentence(decision)}"
    for result in decision.filters:
        yield _filter_line(result)
    for like in decision.protected:
        bits = f", {like.distance} bits apart" if like.by != "exact" else ""
        yield f"  protected  like {like.evaluation_uid} of {like.evaluation}: {like.by}{bits}"
    if decision.duplicates:
        yield from _group_lines(decision.duplicates)
    yield from _entry_lines(decision)
    for use in decision.checkpoints:
        yield f"  training   {_use(use)}"
    if not decision.checkpoints:
        yield "  training   no checkpoint goes back to this selection"


def _sentence(decision: Decision) -> str:
    """The verdict and what decided it."""
    if decision.verdict == OUTSIDE:
        return f"not considered: it is in split {decision.split}, the selection takes {', '.join(decision.splits)}"
    if decision.verdict == KEPT:
        drawn = f", draw {_value(decision.draw)} is below p_keep {_value(decision.p_keep)}" if decision.balanced else ""
        return f"kept{drawn}"
    if decision.reason == DRAWN_OUT:
        return f"dropped, draw {_value(decision.draw)} is not below p_keep {_value(decision.p_keep)}"
    if decision.reason == DUPLICATE and decision.duplicates:
        return f"dropped, a duplicate of {decision.duplicates.stays}"
    if decision.reason == PROTECTED and decision.protected:
        return f"dropped, {decision.protected[0].evaluation} evaluates a picture like it"
    words = {UNMATCHED: "its caption matches no entry", NO_CAPTION: f"it has no caption {decision.caption_source!r}"}
    return f"dropped, {words.get(decision.reason, f'filter {decision.reason}')}"


def _filter_line(result: FilterResult) -> str:
    bounds = ", ".join(f"{name} {_value(value)}" for name, value in result.bounds.items() if value is not None)
    verdict = "pass" if result.passes else "DROP"
    return f"  {verdict}       {result.filter:<20} {_value(result.value):<24} {bounds}".rstrip()


def _group_lines(group: Group) -> Iterator[str]:
    stays = f"{group.stays} stays" if group.stays else "all were dropped before"
    yield f"  duplicates {group.size} pairs alike ({', '.join(group.by)}); {stays}"
    for member in group.members[:_MOST_LINES]:
        fate = "not judged" if member.reason is None else member.reason or "kept"
        yield f"             {member.uid} ({', '.join(member.by)}): {fate}"
    if group.size > _MOST_LINES:
        yield f"             and {group.size - _MOST_LINES:,} more"


def _entry_lines(decision: Decision) -> Iterator[str]:
    if not decision.balanced or decision.verdict == OUTSIDE:
        return
    yield f"  entries    {len(decision.entries)} matched, t {decision.t:,}"
    for entry in decision.entries[:_MOST_LINES]:
        text = one_line(entry.entry, 24)
        yield f"             {text:<24} {entry.pairs:>9,} pairs {entry.kept:>9,} kept  p {_value(entry.p)}"
    if len(decision.entries) > _MOST_LINES:
        yield f"             and {len(decision.entries) - _MOST_LINES} more"


def _use(use: Use) -> str:
    what = "" if use.how == "derived" else " it" if use.saw_pair else " this selection, which leaves it out"
    long = f" ({use.samples_seen:,} samples" if use.samples_seen and use.saw_pair else ""
    long += f", {use.steps:,} steps)" if long and use.steps else ")" if long else ""
    return f"{use.checkpoint} {_USES[use.how]}{what}{long}"


def _value(value: Any) -> str:
    """A value in few characters."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_value, value)) if isinstance(value, list | tuple) else one_line(str(value), 80)
