"""What an account may do, computed from roles and bindings as the API server does it."""

from typing import Any, NamedTuple

Object = dict[str, Any]


class Right(NamedTuple):
    """One verb on one resource in one namespace (`*`: all of them); `name` where only that object is meant."""

    namespace: str
    group: str
    resource: str
    verb: str
    name: str = "*"


def rights_of(objects: list[Object], namespace: str, account: str) -> set[Right]:
    """Everything that the objects grant an account."""
    granted: set[Right] = set()
    for binding in objects:
        if binding["kind"] in ("RoleBinding", "ClusterRoleBinding") and _binds(binding, namespace, account):
            where = binding["metadata"].get("namespace", "") if binding["kind"] == "RoleBinding" else "*"
            granted |= _rights_in(_role(objects, binding), where)
    return granted


def _binds(binding: Object, namespace: str, account: str) -> bool:
    groups = {"system:authenticated", "system:serviceaccounts", f"system:serviceaccounts:{namespace}"}
    return any(
        (subject["kind"], subject.get("namespace"), subject["name"]) == ("ServiceAccount", namespace, account)
        or (subject["kind"] == "Group" and subject["name"] in groups)
        for subject in binding["subjects"]
    )


def _role(objects: list[Object], binding: Object) -> Object:
    wanted, where = binding["roleRef"], binding["metadata"].get("namespace")
    for thing in objects:
        same = thing["kind"] == wanted["kind"] and thing["metadata"]["name"] == wanted["name"]
        if same and (thing["kind"] == "ClusterRole" or thing["metadata"].get("namespace") == where):
            return thing
    raise AssertionError(f"{binding['metadata']['name']}: no {wanted['kind']} {wanted['name']} in {where}")


def _rights_in(role: Object, namespace: str) -> set[Right]:
    return {
        Right(namespace, group, resource, verb, name)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", ["*"])
    }
