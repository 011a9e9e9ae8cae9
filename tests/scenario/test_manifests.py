"""Compose and Kubernetes manifests: valid by their schemas, and made of options, files and ports that exist."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from secure_infer.cli.party import party
from secure_infer.cli.serve import serve
from secure_infer.serve.party_files import CERTIFICATE, KEY, MODEL, ROLES

PROTOCOLS = Path(__file__).parents[2] / "protocols"
NAMES = ("ckks", "mpc", "tfhe")
COMPOSED = (*NAMES, "mpc-fss", "mpc-spu")


def load(protocol: str, name: str) -> list[Any]:
    return list(yaml.safe_load_all((PROTOCOLS / protocol / name).read_text()))


@pytest.mark.parametrize("protocol", COMPOSED)
def test_compose_follows_its_schema(protocol: str) -> None:
    schemas = pytest.importorskip("check_jsonschema.builtin_schemas")
    import jsonschema

    (document,) = load(protocol, "compose.yaml")
    schema = schemas.get_builtin_schema("vendor.compose-spec")
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "services": {"server": {"imagine": "x"}}}, schema)


@pytest.mark.parametrize("protocol", NAMES)
def test_kubernetes_follows_its_schema(protocol: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for document in load(protocol, "kubernetes.yaml"):
        kubernetes_validate.validate(document, "1.30", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, "spec": {"replicas": "one"}}, "1.30", strict=True)


def commands(protocol: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Words and environment of every container in both manifests."""
    for service in load(protocol, "compose.yaml")[0]["services"].values():
        yield service["command"], service.get("environment", {})
    for document in load(protocol, "kubernetes.yaml") if protocol in NAMES else ():
        if document["kind"] == "StatefulSet":
            for container in document["spec"]["template"]["spec"]["containers"]:
                yield container["args"], {entry["name"]: entry["value"] for entry in container["env"]}


@pytest.mark.parametrize("protocol", COMPOSED)
def test_their_commands_exist(protocol: str) -> None:
    found = list(commands(protocol))
    assert len(found) == {"mpc": 7, "mpc-fss": 3, "mpc-spu": 3}.get(protocol, 2)
    for words, environment in found:
        function = {"serve": serve, "party": party}[words[0]]
        options = {f"--{name.replace('_', '-')}" for name in inspect.signature(function).parameters}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options
        known = {
            data.envvar
            for hint in get_type_hints(function, include_extras=True).values()
            for data in getattr(hint, "__metadata__", ())
            if getattr(data, "envvar", None)
        }
        assert {name for name in environment if name.startswith("SECURE_INFER_")} <= known


@pytest.mark.parametrize("protocol", ["mpc", "mpc-fss", "mpc-spu"])
def test_a_role_mounts_its_own_folder_only(protocol: str) -> None:
    """Where a stock of correlations is kept, the folder can be written to."""
    services = load(protocol, "compose.yaml")[0]["services"]
    mounts = [[v for v in service["volumes"] if v.startswith("./")] for service in services.values()]
    end, roles = {
        "mpc": (":ro", tuple(ROLES)),
        "mpc-fss": ("", ("a", "b", "dealer")),
        "mpc-spu": (":ro", ("a", "b", "c")),
    }[protocol]
    assert sorted(path for (path,) in mounts) == [f"./roles/{role}:/role{end}" for role in roles]


def test_a_role_is_given_its_own_secrets_only() -> None:
    for document in load("mpc", "kubernetes.yaml"):
        if document["kind"] != "StatefulSet":
            continue
        role = document["metadata"]["namespace"].removeprefix("mpc-")
        (secret,) = [v["secret"] for v in document["spec"]["template"]["spec"]["volumes"] if "secret" in v]
        paths = {item["path"] for item in secret["items"]}
        assert {KEY, CERTIFICATE, *(f"peers/{other}.pem" for other in ("a", "b", "dealer") if other != role)} <= paths
        assert (MODEL in paths) == (role != "dealer")
