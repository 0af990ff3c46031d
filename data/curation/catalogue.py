"""All complete artifacts below a root, opened once: who was made from whom, also where an ancestor is gone."""

from collections.abc import Collection

from data import storage
from data.artifacts import Artifact, artifacts_below


class Catalogue:
    """The artifacts below `root_uri`, by fingerprint, in order of their names; with `names`, only those."""

    def __init__(self, root_uri: str, names: Collection[str] | None = None) -> None:
        self.root_uri = storage.normalise(root_uri)
        self._by_print: dict[str, Artifact] = {}
        for artifact in artifacts_below(self.root_uri, names=names):
            self._by_print.setdefault(artifact.fingerprint, artifact)

    def find(self, print_: str | None) -> Artifact | None:
        """The artifact with this fingerprint; None where it is not below the root."""
        return self._by_print.get(print_ or "")

    def parent(self, artifact: Artifact, role: str) -> Artifact | None:
        """The parent that played `role`; None where there is no such role, or the parent is gone."""
        return self.find(artifact.record.parents.get(role))

    def of_kind(self, kind: str, **parents: str) -> list[Artifact]:
        """Artifacts of a kind, of which each parent named has the fingerprint given."""
        return [
            artifact for artifact in self._by_print.values()
            if artifact.record.kind == kind and parents.items() <= artifact.record.parents.items()
        ]  # fmt: skip

    def ancestry(self, artifact: Artifact) -> set[str]:
        """Fingerprints of everything the artifact was made from, as far as records are still there."""
        queue, seen = list(artifact.record.parents.values()), set[str]()
        while queue:
            print_ = queue.pop()
            found = None if print_ in seen else self.find(print_)
            seen.add(print_)
            queue += found.record.parents.values() if found else ()
        return seen

    def use_of(self, selection_print: str, checkpoint: Artifact) -> str:
        """How a checkpoint goes back to a selection: trained | initialised | derived, "" if it does not.

        `initialised`: its weights come from a checkpoint that was trained on it. `derived`: something else behind it
        was, such as a teacher, or features that another selection was made with.
        """
        if checkpoint.record.parents.get("selection") == selection_print:
            return "trained"
        before = self.parent(checkpoint, "init")
        if before and self.use_of(selection_print, before) in ("trained", "initialised"):
            return "initialised"
        return "derived" if selection_print in self.ancestry(checkpoint) else ""
