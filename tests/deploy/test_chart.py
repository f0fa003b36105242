"""The chart as Helm renders it: what its values do, and what it says about wrong ones."""

from __future__ import annotations

import copy
import json
import shutil
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deploy.chart import URL, VALUES_FILES, Right, default_values, each_values_file, leaves, load, rights_of, value_of
from podlink.cluster import preflight
from sandbox.cluster import CHART, CRD, FINALIZER_POLICY, REPOSITORY
from sandbox.helm import settings

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sandbox.helm import Helm

CLUSTER_SCOPED = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}


def only(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    found = [each for each in objects if each["kind"] == kind]
    assert len(found) == 1, [each["metadata"]["name"] for each in found]
    return found[0]


def pod_spec(objects: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = only(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


def environment(objects: list[dict[str, Any]]) -> dict[str, str]:
    variables = pod_spec(objects)["containers"][0]["env"]
    return {each["name"]: each["value"] for each in variables if "value" in each}


def test_version_is_the_packages() -> None:
    chart = load(CHART / "Chart.yaml")
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)


@each_values_file
def test_lint_finds_nothing(helm: Helm, values: Path) -> None:
    helm.run("lint", "--strict", CHART, "--values", values)


def without(values: dict[str, Any], path: str) -> dict[str, Any]:
    """A copy in which one value is not set."""
    changed = copy.deepcopy(values)
    *parents, name = path.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    del place[name]
    return changed


def test_every_value_has_an_effect(helm: Helm, tmp_path: Path) -> None:
    defaults = default_values()
    file = tmp_path / "values.yaml"

    def rendered(values: dict[str, Any]) -> str | None:
        """None where the chart refuses them."""
        file.write_text(yaml.safe_dump(values))
        shown = helm.run("template", CHART, "--values", file, check=False)
        return shown.stdout if shown.returncode == 0 else None

    effective = set()
    for values in map(load, VALUES_FILES):
        whole = rendered(values)
        assert whole is not None
        changed = [path for path in leaves(defaults) if value_of(values, path) not in (None, value_of(defaults, path))]
        effective |= {path for path in changed if rendered(without(values, path)) != whole}
    assert [path for path in leaves(defaults) if path not in effective] == []


@each_values_file
def test_objects_are_in_the_release_and_labelled(helm: Helm, values: Path) -> None:
    objects = helm.objects("--values", values, namespace="games")
    served = (load(values).get("watch") or {}).get("namespaces", [])
    for each in objects:
        where = each["metadata"].get("namespace")
        assert (where is None) == (each["kind"] in CLUSTER_SCOPED), each["metadata"]
        assert where in {None, "games", *served}
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "podlink"


def test_type_and_policy_are_the_one_copy(helm: Helm, tmp_path: Path) -> None:
    # A package has no links to files outside of it.
    helm.run("package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.glob("*.tgz")
    text = helm.run("template", package, *settings(URL, "finalizerPolicy=enabled")).stdout
    objects = [each for each in yaml.safe_load_all(text) if each]

    assert only(objects, "CustomResourceDefinition")["spec"] == load(CRD)["spec"]
    for document in yaml.safe_load_all(FINALIZER_POLICY.read_text()):
        assert only(objects, document["kind"])["spec"] == document["spec"]


def test_namespaced_release_is_nothing_to_the_cluster(helm: Helm) -> None:
    objects = helm.objects("--values", CHART / "ci" / "namespaced-values.yaml")

    assert not CLUSTER_SCOPED & {each["kind"] for each in objects}
    names = [(each["metadata"]["namespace"], each["metadata"]["name"]) for each in objects if each["kind"] == "Role"]
    assert sorted(names) == [("default", "podlink"), ("kube-public", "podlink"), ("podlink-system", "podlink-lease")]
    assert environment(objects)["PODLINK_NAMESPACE"] == "default kube-public"


def needed(rights: Iterable[preflight.Right]) -> set[Right]:
    """What the operator asks the API server about, in the words of a role."""
    return {
        Right(each.group, f"{each.resource}/{each.subresource}".rstrip("/"), verb)
        for each in rights
        for verb in each.verbs
    }


@pytest.mark.parametrize(
    ("values", "watched", "also"),
    [
        ("cluster-wide", {""}, set()),
        ("namespaced", {"default", "kube-public"}, {Right("", "namespaces", "get")}),
    ],
)
def test_rights_are_those_that_the_operator_says_it_needs(
    helm: Helm, values: str, watched: set[str], also: set[Right]
) -> None:
    objects = helm.objects("--values", CHART / "ci" / f"{values}-values.yaml", namespace="games")
    bound = {each["roleRef"]["name"] for each in objects if each["kind"].endswith("RoleBinding")}
    roles = [each for each in objects if each["kind"].endswith("Role") and each["metadata"]["name"] in bound]
    lease = [role for role in roles if role["metadata"].get("namespace") == "games"]

    assert rights_of(*lease) == needed(preflight.LEASE)
    watching = {role["metadata"].get("namespace", ""): rights_of(role) for role in roles if role not in lease}
    assert watching == dict.fromkeys(watched, needed(preflight.WATCHED) | also)


def test_one_secret_for_everything_is_mounted_once(helm: Helm) -> None:
    objects = helm.objects("--values", CHART / "ci" / "tls-values.yaml")

    volumes = [each["secret"] for each in pod_spec(objects)["volumes"] if "secret" in each]
    assert volumes == [{"secretName": "redis-access", "optional": True}]
    directory = "/etc/podlink/secrets/redis-access"
    mounts = [each["mountPath"] for each in pod_spec(objects)["containers"][0]["volumeMounts"]]
    assert [path for path in mounts if path.startswith("/etc")] == [directory]
    files = {name: value for name, value in environment(objects).items() if name.endswith("_FILE")}
    assert files == {
        "PODLINK_REDIS_URL_FILE": f"{directory}/url",
        "PODLINK_REDIS_PASSWORD_FILE": f"{directory}/password",
        "PODLINK_REDIS_CA_FILE": f"{directory}/ca.crt",
        "PODLINK_REDIS_CERT_FILE": f"{directory}/tls.crt",
        "PODLINK_REDIS_KEY_FILE": f"{directory}/tls.key",
    }


def test_services_of_the_namespace_do_not_become_settings(helm: Helm) -> None:
    # The kubelet would tell of a Service podlink-http by PODLINK_HTTP_PORT=tcp://….
    assert pod_spec(helm.objects(*settings(URL)))["enableServiceLinks"] is False


def test_embedded_valkey_has_a_place_for_its_data(helm: Helm) -> None:
    objects = helm.objects("--values", CHART / "ci" / "embedded-values.yaml")

    assert not [name for name in environment(objects) if name.startswith("PODLINK_REDIS")]
    directory = environment(objects)["PODLINK_DATA_DIR"]
    mounts = {each["mountPath"]: each["name"] for each in pod_spec(objects)["containers"][0]["volumeMounts"]}
    assert {"name": mounts[directory], "emptyDir": {}} in pod_spec(objects)["volumes"]


def test_digest_wins_over_the_tag(helm: Helm) -> None:
    digest = f"sha256:{64 * '0'}"
    objects = helm.objects(*settings(URL, "image.tag=0.1.0-debug", f"image.digest={digest}"))
    assert pod_spec(objects)["containers"][0]["image"] == f"podlink@{digest}"


def egress(helm: Helm, values: str) -> list[tuple[list[Any], Any]]:
    """Ports and peers of each rule; the peers are None where it is for any."""
    objects = helm.objects("--values", CHART / "ci" / f"{values}-values.yaml")
    rules = only(objects, "NetworkPolicy")["spec"]["egress"]
    return [([port["port"] for port in rule["ports"]], rule.get("to")) for rule in rules]


def test_network_policy_lets_out_to_what_is_needed(helm: Helm) -> None:
    values = load(CHART / "ci" / "network-policy-values.yaml")["networkPolicy"]
    assert egress(helm, "network-policy") == [
        ([53, 53], None),
        ([6443], values["apiServer"]["to"]),
        ([6380], values["redis"]["to"]),
        ([4318], None),
    ]
    assert egress(helm, "sentinel")[1:] == [([443, 6443], None), ([6379, 26379], None)]
    assert egress(helm, "tracing")[1:] == [([443, 6443], None), ([6379], None), ([443], None)]


def test_network_policy_lets_in_to_metrics_and_probes_alone(helm: Helm) -> None:
    objects = helm.objects("--values", CHART / "ci" / "network-policy-values.yaml")
    spec = only(objects, "NetworkPolicy")["spec"]
    (rule,) = spec["ingress"]
    assert [port["port"] for port in rule["ports"]] == ["http"]
    assert rule["from"] == load(CHART / "ci" / "network-policy-values.yaml")["networkPolicy"]["metricsFrom"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]


def test_monitoring_carries_alerts_and_dashboard_as_they_are(helm: Helm) -> None:
    objects = helm.objects("--values", CHART / "ci" / "monitoring-values.yaml")

    assert only(objects, "PrometheusRule")["spec"] == load(CHART / "files" / "alerts.yaml")
    dashboard = only(objects, "ConfigMap")["data"]["podlink.json"]
    assert json.loads(dashboard) == json.loads((CHART / "files" / "dashboard.json").read_text())
    monitor, service = only(objects, "ServiceMonitor"), only(objects, "Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    pods = only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= pods.items()


def test_unknown_values_are_refused_everywhere(helm: Helm) -> None:
    known = {path.rpartition(".")[0] for path in leaves(default_values())}
    free = ("metrics.dashboard.labels", "resources.requests", "resources.limits")  # for any names
    paths = sorted(known - set(free))
    assert "redis.tls" in paths
    unknown = [f"{path}.surprise=1".removeprefix(".") for path in paths]

    refused = helm.run("template", CHART, *settings(URL, *unknown), check=False)

    assert refused.returncode == 1
    for path in paths:
        place = f"'/{path.replace('.', '/')}'".replace("'/'", "''")
        assert f"at {place}: additional properties 'surprise' not allowed" in refused.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "set one of redis.urlSecret.name"),
        ([URL, "redis.embedded=true"], "redis.embedded and redis.url are set: keep only one of them"),
        ([URL, "redis.urlSecret.name=redis"], "redis.url and redis.urlSecret.name are set: keep only one of them"),
        (["redis.url=redis://:hunter2@redis/0"], "redis.url contains a password"),
        (["redis.url=redis+sentinel://a:1/s?sentinel_password=hunter2"], "redis.url contains a password"),
        (["redis.url=http://redis"], "at '/redis/url': 'http://redis' does not match"),
        (["redis.embedded=true", "replicas=2"], "replicas must be 1 with redis.embedded"),
        (["redis.embedded=true", "redis.username=gate"], "leave them out with redis.embedded"),
        (["redis.embedded=yes"], "at '/redis/embedded': got string, want boolean"),
        ([URL, "redis.tls.secretName=tls"], "redis.tls.secretName is for TLS, but redis.url does not use TLS"),
        ([URL, "logLevel=trace"], "/logLevel"),
        ([URL, "fullnameOverride=My_Operator"], "at '/fullnameOverride': 'My_Operator' does not match"),
        ([URL, "extraVolumeMounts[0].name=scratch"], "/extraVolumeMounts/0"),
        ([URL, "redis.tls.secretName=tls", "redis.tls.certKey=tls.crt"], "redis.tls.certKey and redis.tls.keyKey"),
        ([URL, "redis.passwordSecret.name=Redis"], "at '/redis/passwordSecret/name'"),
        (["redis.urlSecret.name=redis", "redis.urlSecret.key="], "at '/redis/urlSecret/key'"),
        ([URL, "replicas=many"], "at '/replicas': got string, want integer"),
        ([URL, "replicas=-1"], "at '/replicas': minimum: got -1, want 0"),
        ([URL, "watch.namespaces=default"], "at '/watch/namespaces': got string, want array"),
        ([URL, "watch.namespaces={default,Games}"], "at '/watch/namespaces/1': 'Games' does not match"),
        ([URL, "watch.namespaces={default,default}"], "at '/watch/namespaces': items at 0 and 1 are equal"),
        ([URL, "resyncSeconds=0"], "at '/resyncSeconds': minimum: got 0, want 1"),
        ([URL, "recountSeconds=1h"], "at '/recountSeconds': got string, want integer"),
        ([URL, "logFormat=yaml"], "at '/logFormat': value must be one of 'json', 'text'"),
        ([URL, "finalizerPolicy=true"], "at '/finalizerPolicy': value must be one of 'auto', 'enabled', 'disabled'"),
        ([URL, "tracing.enabled=true"], "tracing.endpoint is empty"),
        ([URL, "tracing.endpoint=collector:4318"], "at '/tracing/endpoint'"),
        ([URL, "image.digest=0123"], "at '/image/digest'"),
        ([URL, "image.pullPolicy=Sometimes"], "at '/image/pullPolicy': value must be one of"),
        ([URL, "extraEnv[0].value=1"], "at '/extraEnv/0': missing property 'name'"),
        ([URL, "networkPolicy.redis.ports={70000}"], "at '/networkPolicy/redis/ports/0': maximum"),
        ([URL, "networkPolicy.apiServer.ports="], "at '/networkPolicy/apiServer/ports'"),
        ([URL, "podDisruptionBudget.maxUnavailable=half"], "at '/podDisruptionBudget/maxUnavailable'"),
        ([URL, "metrics.serviceMonitor.interval=30"], "at '/metrics/serviceMonitor/interval'"),
        ([URL, "terminationGracePeriodSeconds=5"], "at '/terminationGracePeriodSeconds': minimum: got 5, want 20"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_wrong_values_are_refused(helm: Helm, given: list[str], told: str) -> None:
    refused = helm.run("template", CHART, *settings(*given), check=False)

    assert refused.returncode == 1
    assert told in refused.stderr
    assert "hunter2" not in refused.stderr


def test_labels_of_the_pod_never_replace_those_that_it_is_found_by(helm: Helm) -> None:
    objects = helm.objects(*settings(URL, "podLabels.app\\.kubernetes\\.io/name=other", "podLabels.team=core"))
    deployment = only(objects, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert labels["team"] == "core"
    assert deployment["selector"]["matchLabels"].items() <= labels.items()


def test_values_that_are_set_to_nothing_are_none(helm: Helm) -> None:
    # As a user's file has them whose children are commented out.
    nothing = [f"{name}=null" for name in ("podLabels", "podAnnotations", "nodeSelector", "affinity", "extraEnv")]
    assert pod_spec(helm.objects(*settings(URL, *nothing)))


def test_a_chart_that_is_not_whole_says_what_it_lacks(helm: Helm, tmp_path: Path) -> None:
    part = tmp_path / "podlink"
    shutil.copytree(CHART, part)
    (part / "files" / "podlinks.yaml").unlink()
    refused = helm.run("template", part, *settings(URL), check=False)
    assert "the chart lacks files/podlinks.yaml: take the whole of it" in refused.stderr
