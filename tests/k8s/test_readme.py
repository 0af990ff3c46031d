"""k8s/README.md says only what is there: its commands parse, its files exist, its YAML is valid."""

import re
import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from pipelines.cli import make_parser
from pipelines.cluster.spec import KNOWN_KEYS, read_cluster
from pipelines.recipe import load_recipe


@pytest.fixture(scope="module")
def text(k8s):
    return (k8s / "README.md").read_text()


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(text, program):
    """Commands of a program: lines of shell blocks, and what stands in backquotes in the text."""
    lines = [line.partition("#")[0].strip(" &") for line in "\n".join(blocks(text, "sh")).splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines += re.findall(rf"`({program} [^`]+)`", prose)
    return [shlex.split(line) for line in lines if line.startswith(f"{program} ")]


def test_every_clipworks_command_parses(text):
    found = commands(text, "clipworks")
    assert {words[1] for words in found} >= {"plan", "submit", "status", "logs", "retry", "cancel"}
    for words in found:
        make_parser().parse_args(words[1:])


def test_a_command_that_is_none_is_noticed(capsys):
    (words,) = commands("```sh\nclipworks submit tiny --onn x   # no\n```", "clipworks")
    with pytest.raises(SystemExit):
        make_parser().parse_args(words[1:])
    assert "--on" in capsys.readouterr().err


def test_recipe_and_stage_of_the_commands_exist(text):
    words = [word for command in commands(text, "clipworks") for word in command]
    stages = {words[place + 1] for place, word in enumerate(words) if word == "--stage"}
    assert stages <= set(load_recipe("tiny").stages)


def test_every_file_that_is_named_exists(text, k8s):
    root = k8s.parent
    found = [command for program in ("kubectl", "docker", "clipworks") for command in commands(text, program)]
    paths = {word for command in found for word in command if word.startswith("k8s/")}
    assert len(paths) > 3
    assert [path for path in sorted(paths) if not (root / path).exists()] == []
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (k8s / link).exists()] == []
    inline = re.findall(r"`((?:base|components|overlays|examples)/[^`]*)`", text)
    inline = {path.replace("*", "laptop") for path in inline}
    assert len(inline) > 5
    assert [path for path in sorted(inline) if not (k8s / path).exists()] == []


def test_what_is_applied_can_be_applied(text, k8s):
    applied = [words[words.index("-k") + 1] for words in commands(text, "kubectl") if "-k" in words]
    ours = {path for path in applied if "github.com" not in path}
    assert ours == {"k8s/overlays/laptop"}
    assert all((k8s.parent / path / "kustomization.yaml").exists() for path in ours)


def test_yaml_blocks_are_valid_and_the_policy_does_what_is_said(text, rendered, network):
    things = [thing for block in blocks(text, "yaml") for thing in yaml.safe_load_all(block)]
    assert [thing["kind"] for thing in things] == ["NetworkPolicy"]
    kubernetes_validate.validate(things[0], "1.34", strict=True)
    policies = [thing for thing in rendered["gpu"] if thing["kind"] == "NetworkPolicy"]
    ray, bucket = network.End("10.244.1.1", "clipworks", (("ray.io/is-ray-node", "yes"),)), network.End("10.1.2.3")
    assert not network.may_speak(policies, ray, bucket, 9000)
    assert network.may_speak([*policies, *things], ray, bucket, 9000)
    assert not network.may_speak([*policies, *things], ray, bucket, 22)


def test_secrets_have_the_names_and_the_keys_that_pods_ask_for(text, rendered, k8s):
    created = [words for words in commands(text, "kubectl") if "create" in words and "secret" in words]
    made = {words[words.index("generic") + 1] for words in created}
    examples = [read_cluster(str(path)) for path in sorted((k8s / "examples").glob("*.yaml"))]
    assert made == {name for cluster in examples for name in cluster.secrets}
    keys = set(re.findall(r"^([A-Z_]+)=", text, flags=re.MULTILINE))
    assert keys <= set(KNOWN_KEYS)
    (server,) = [thing for thing in rendered["laptop"] if thing["kind"] == "Deployment"]
    (container,) = server["spec"]["template"]["spec"]["containers"]
    assert {entry["valueFrom"]["secretKeyRef"]["key"] for entry in container["env"]} <= keys
    (service,) = [thing for thing in rendered["laptop"] if thing["kind"] == "Service"]
    name, port = service["metadata"], service["spec"]["ports"][0]["port"]
    where = f"{name['name']}.{name['namespace']}.svc:{port}"
    assert f"AWS_ENDPOINT_URL=http://{where}\n" in text


def test_namespaces_and_accounts_are_those_of_the_manifests(text, rendered):
    namespaces = set(re.findall(r"-n (?!\$)([a-z0-9-]+)", text)) - {"kueue-system", "team-a"}
    ours = {thing["metadata"].get("namespace") for thing in rendered["laptop"]} - {None}
    (ray,) = [thing for thing in rendered["laptop"] if thing["metadata"]["name"] == "ray"]
    operator = ray["spec"]["ingress"][1]["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert namespaces == {*ours, operator}
    roles = {thing["metadata"]["name"] for thing in rendered["laptop"] if thing["kind"] == "Role"}
    assert set(re.findall(r"--role=(\S+)", text)) <= roles


def test_versions_that_are_said_to_be_checked_are(text):
    source = Path(__file__).with_name("test_manifests.py").read_text()
    said = re.search(r"schemas of Kubernetes ([\d.]+), ([\d.]+) and ([\d.]+),", text)
    assert said
    assert f'["{said[1]}", "{said[2]}", kubernetes_validate.latest_version()]' in source
    newest = kubernetes_validate.latest_version().removesuffix(".0")
    assert said[3] == newest, "the newest schemas are of another release now: say so"
