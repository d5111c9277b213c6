"""The manifests of docker/kubernetes, held against the schemas of Kubernetes and against the code.

What needs a cluster (that the pods start, that KEDA scales) is not shown here.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from redis import Redis

from fimlora_contract.environment_names import NAMES
from fimlora_jobs.store import JobStore
from fimlora_service.app import create_app
from support.valkey import running_valkey

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "kubernetes"
BASE = FOLDER / "base"
FILES = sorted(p for p in BASE.glob("*.yaml") if p.name != "kustomization.yaml")
PODS = ("valkey", "service", "worker")
# The oldest that the folder's README names, and the newest that the schemas know.
VERSIONS = ("1.27", kubernetes_validate.latest_version())
# `valkey` in the image `valkey/valkey:*-alpine`; numbers, because the kubelet knows no names.
VALKEY_USER = 999


def documents(path: Path) -> list[dict[str, Any]]:
    """The objects of a file."""
    return [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]


ALL = [
    pytest.param(d, id=f"{d['kind']}-{d['metadata']['name']}")
    for f in FILES
    for d in documents(f)
]
OBJECTS = {(d.values[0]["kind"], d.values[0]["metadata"]["name"]): d.values[0] for d in ALL}


def pod_of(name: str) -> dict[str, Any]:
    """The pod that a workload makes."""
    [found] = [
        d for d in OBJECTS.values() if d["metadata"]["name"] == name and "template" in d["spec"]
    ]
    return found["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", ALL)
def test_every_object_is_as_its_schema_says(document: dict[str, Any], version: str) -> None:
    """No field is misspelt or of another type; KEDA's kinds are not among the schemas."""
    if document["apiVersion"].startswith("keda.sh/"):
        with pytest.raises(kubernetes_validate.SchemaNotFoundError):
            kubernetes_validate.validate(document, version, strict=True)
        return
    kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    """The check above can fail."""
    wrong = json.loads(json.dumps(OBJECTS["Deployment", "worker"]))
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 120

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_the_kustomization_names_every_file() -> None:
    """A file that is left out would be missed in the cluster only."""
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text(encoding="utf-8"))

    assert sorted(kustomization["resources"]) == [path.name for path in FILES]


@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_kustomize_builds_it(folder: str) -> None:
    """Every reference between the files holds, and the GPU lands in the worker."""
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl")
    done = subprocess.run(
        ["kubectl", "kustomize", FOLDER / folder], capture_output=True, text=True, check=True
    )
    built = {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all(done.stdout)}

    limits = built["Deployment", "worker"]["spec"]["template"]["spec"]["containers"][0]
    assert ("nvidia.com/gpu" in limits["resources"]["limits"]) is (folder == "gpu")
    assert len(built) == len(OBJECTS) + 1  # the ConfigMap


@pytest.mark.parametrize("name", PODS)
def test_a_pod_may_do_no_more_than_it_must(name: str) -> None:
    """As the profile `restricted` asks, and without the cluster's token or a writable image."""
    pod = pod_of(name)

    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]


def test_users_are_those_of_the_images() -> None:
    """The volume is written by both processes, and the images run as nobody else."""
    for name in ("service", "worker"):
        text = (ROOT / "docker" / f"{name}.Dockerfile").read_text(encoding="utf-8")
        [uid] = re.findall(r"useradd --uid (\d+)", text)

        assert pod_of(name)["securityContext"]["runAsUser"] == int(uid)
        assert pod_of(name)["securityContext"]["fsGroup"] == int(uid)
    assert pod_of("valkey")["securityContext"]["runAsUser"] == VALKEY_USER


def test_only_known_settings_are_set() -> None:
    """A misspelt name would stop the pods."""
    texts = "".join(p.read_text(encoding="utf-8") for p in FOLDER.rglob("*.yaml"))
    used = set(re.findall(r"FIMLORA_[A-Z0-9_]+", texts))

    assert used
    assert {name.removesuffix("_FILE") for name in used} <= set(NAMES)


def test_secrets_reach_only_who_needs_them() -> None:
    """The worker loads strangers' models: it holds the address of Valkey and nothing else."""
    keys = {
        name: {
            item["key"]
            for v in pod_of(name)["volumes"]
            if "secret" in v
            for item in v["secret"]["items"]
        }
        for name in PODS
    }

    assert keys == {
        "valkey": {"valkey-password"},
        "service": {"redis-url", "admin-key"},
        "worker": {"redis-url"},
    }
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"--from-literal=([a-z-]+)=", readme)) == set.union(*keys.values())


def test_probes_ask_routes_that_exist() -> None:
    """By a name that the service answers to, whatever names it is given."""
    [container] = pod_of("service")["containers"]
    probes = [
        container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")
    ]
    paths = create_app().openapi()["paths"]

    assert {probe["path"] for probe in probes} <= set(paths)
    assert all(p["httpHeaders"] == [{"name": "Host", "value": "localhost"}] for p in probes)


def test_workers_are_counted_by_open_jobs() -> None:
    """KEDA takes the length of a hash by HLEN: waiting and running jobs, until they end."""
    [trigger] = OBJECTS["ScaledObject", "worker"]["spec"]["triggers"]
    name = trigger["metadata"]["listName"]
    with running_valkey() as url, Redis.from_url(url) as redis:
        store = JobStore(redis)
        first, second = (
            store.create(store.new_id(), request={}, resolved={}, digest=digest)
            for digest in "ab"
        )
        store.start(first.id, 1, worker="w")
        assert redis.type(name) == b"hash"
        assert redis.hlen(name) == 2

        store.request_cancel(second.id)
        assert redis.hlen(name) == 1


def test_a_terminated_worker_has_time_to_hand_over() -> None:
    """As long as compose gives it."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    grace = compose["services"]["worker"]["stop_grace_period"]

    assert grace == f"{pod_of('worker')['terminationGracePeriodSeconds']}s"
