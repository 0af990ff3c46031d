"""Who may speak to whom under a set of NetworkPolicies, as the specification says it (a plugin must enforce it)."""

from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

Object = dict[str, Any]


class End(NamedTuple):
    """One end of a connection: a pod, or with no namespace an address outside."""

    ip: str
    namespace: str | None = None
    labels: tuple[tuple[str, str], ...] = ()


def may_speak(policies: list[Object], source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    """Whether source may open a connection to target: its own policies must let it out, the target's must let it in."""
    return _passes(policies, "Egress", source, target, port, protocol) and _passes(
        policies, "Ingress", target, source, port, protocol
    )


def _passes(policies: list[Object], way: str, end: End, other: End, port: int, protocol: str) -> bool:
    """An end that no policy of this way selects is open; otherwise one rule of one of them must allow the other."""
    selecting = [policy["spec"] for policy in policies if _selects(policy, way, end)]
    rules = [rule for spec in selecting for rule in spec.get(way.lower()) or []]
    side = "to" if way == "Egress" else "from"
    return not selecting or any(
        _matches_port(rule.get("ports"), port, protocol) and _matches_peers(end.namespace, rule.get(side), other)
        for rule in rules
    )


def _selects(policy: Object, way: str, end: End) -> bool:
    spec = policy["spec"]
    ways = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    return (
        way in ways
        and end.namespace == policy["metadata"]["namespace"]
        and _fits(spec.get("podSelector", {}), dict(end.labels))
    )


def _matches_port(ports: list[Object] | None, port: int, protocol: str) -> bool:
    return not ports or any(
        entry.get("protocol", "TCP") == protocol
        and ("port" not in entry or entry["port"] <= port <= entry.get("endPort", entry["port"]))
        for entry in ports
    )


def _matches_peers(namespace: str | None, peers: list[Object] | None, other: End) -> bool:
    return not peers or any(_matches_peer(namespace, peer, other) for peer in peers)


def _matches_peer(namespace: str | None, peer: Object, other: End) -> bool:
    if "ipBlock" in peer:  # plugins differ in whether a pod's address counts; here it does, the more open reading
        address, block = ip_address(other.ip), peer["ipBlock"]
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(hole) for hole in block.get("except", [])
        )
    if other.namespace is None:
        return False
    if "namespaceSelector" in peer:
        in_namespace = _fits(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})
    else:
        in_namespace = other.namespace == namespace
    return in_namespace and _fits(peer.get("podSelector", {}), dict(other.labels))


def _fits(selector: Object, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}).items()
    return all(labels.get(name) == value for name, value in wanted) and all(
        _expression(entry, labels) for entry in selector.get("matchExpressions", [])
    )


def _expression(entry: Object, labels: dict[str, str]) -> bool:
    name, values = entry["key"], entry.get("values", [])
    return {
        "In": labels.get(name) in values,
        "NotIn": labels.get(name) not in values,
        "Exists": name in labels,
        "DoesNotExist": name not in labels,
    }[entry["operator"]]
