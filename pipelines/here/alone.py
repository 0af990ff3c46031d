"""One stage by itself, without a pipeline: in this process, its events drawn while it works."""

import threading
import time

from rich.console import Console

from data import storage
from data.artifacts import Artifact, Output
from data.place import Place
from data.stage import StageSpec, run_stage
from pipelines.render import EventTail, Renderer, make_renderer

_POLL_SECONDS = 0.2


def run_alone(name: str, spec: StageSpec, place: Place, console: Console) -> Artifact:
    """Run a stage that has no parents and print its artifact."""
    place = place.model_copy(update={"root": storage.normalise(place.root)})
    tail = EventTail(Output(place.root, name, spec.fingerprint({})).events_uri, time.time())
    with make_renderer(console) as renderer:
        stop = threading.Event()
        thread = threading.Thread(target=_draw, args=(tail, renderer, stop), daemon=True)
        thread.start()
        try:
            artifact = run_stage(name, spec, {}, place)
        finally:
            stop.set()
            thread.join()
    console.print(artifact.uri, highlight=False, soft_wrap=True)
    for what, count in artifact.record.counts.items():
        console.print(f"  {count:>12,} {what.replace('_', ' ')}", highlight=False)
    return artifact


def _draw(tail: EventTail, renderer: Renderer, stop: threading.Event) -> None:
    """Draw until told to stop, and then what came last."""
    while True:
        is_last = stop.wait(_POLL_SECONDS)
        for event in tail.read():
            renderer.show(event)
        if is_last:
            return
