"""What a workload may be: bad input is refused with what would be right, and nothing is coerced or dropped."""

from typing import Any

import pytest
from pydantic import ValidationError

from builders import a_manifest, a_spec, a_workload
from kakuri.model import RestartPolicy, Workload, WorkloadManifest, WorkloadSpec, ips_overlap
from kakuri.model.workload import REPLACING_FIELDS

SEED = {"id": "wl-123", "image": "ghcr.io/example/secure-app:1.0", "runtime_class": "edera-zone"} | {
    "memory_mb": 512,
    "cpu_millicores": 500,
}


def refusal(**fields: Any) -> str:
    """Where and what is wrong with the seed's example changed like this, as in: memory_mb: message."""
    with pytest.raises(ValidationError) as caught:
        WorkloadManifest.model_validate(SEED | fields)
    errors = caught.value.errors()
    assert len(errors) == 1, errors
    return f"{'.'.join(str(p) for p in errors[0]['loc'])}: {errors[0]['msg']}"


def test_the_seeds_example_is_a_workload() -> None:
    manifest = WorkloadManifest.model_validate(SEED)
    assert (manifest.replicas, manifest.restart_policy, manifest.termination_grace_s) == (1, RestartPolicy.ALWAYS, 10)
    assert WorkloadManifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_every_field_of_the_design_is_understood() -> None:
    manifest = WorkloadManifest.model_validate(
        SEED
        | {
            "kind": "Workload",
            "labels": {"app": "web"},
            "replicas": 3,
            "command": ["/bin/app"],
            "args": ["--port", "8080"],
            "env": {"KEY": "value"},
            "working_dir": "/srv",
            "restart_policy": "OnFailure",
            "max_restarts": 6,
            "ports": [{"port": 8080, "host_port": 18080, "host_ip": "127.0.0.1", "protocol": "tcp"}],
            "node_selector": {"zone": "a"},
            "termination_grace_s": 10,
            "max_unavailable": 1,
            "on_disconnect": "keep",
        }
    )
    assert manifest.ports[0].host_port == 18080
    assert manifest.spec == WorkloadSpec.model_validate(manifest.model_dump(exclude={"id", "kind"}))


@pytest.mark.parametrize(
    "id_", ["", "Web", "web_1", "-web", "web-", "web.1", "we b", "wéb", "a" * 64, "../etc", "web\n", "web.0.0123abcd"]
)
def test_an_id_that_is_no_dns_label_is_refused(id_: str) -> None:
    assert "is not a name; use at most 63 of a-z, 0-9 and '-'" in refusal(id=id_)


@pytest.mark.parametrize("id_", ["a", "0", "wl-123", "a--b", "a" * 63])
def test_an_id_that_is_a_dns_label_is_taken(id_: str) -> None:
    assert a_manifest(id_).id == id_


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory_mb", 0),
        ("memory_mb", -1),
        ("memory_mb", 16_777_217),
        ("memory_mb", 2**70),
        ("cpu_millicores", 0),
        ("cpu_millicores", -500),
        ("cpu_millicores", 1_024_001),
        ("replicas", -1),
        ("replicas", 10_001),
        ("max_restarts", -1),
        ("termination_grace_s", -1),
        ("termination_grace_s", 3601),
        ("max_unavailable", 0),
    ],
)
def test_a_negative_or_absurd_size_is_refused(field: str, value: int) -> None:
    told = refusal(**{field: value})
    assert told.startswith(f"{field}: ")
    assert "greater than or equal to" in told or "less than or equal to" in told


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("memory_mb", "512", id="text is no number"),
        pytest.param("memory_mb", 512.0, id="a float is no whole number"),
        pytest.param("replicas", True, id="a boolean is no number"),
        pytest.param("image", 7, id="a number is no text"),
        pytest.param("labels", {"app": 1}, id="a label is text"),
        pytest.param("labels", ["app"], id="labels are a map"),
        pytest.param("env", {"PORT": 8080}, id="a variable is text"),
        pytest.param("command", "sh -c true", id="a command is a list"),
        pytest.param("args", [1], id="an argument is text"),
        pytest.param("ports", {"port": 80}, id="ports are a list"),
        pytest.param("restart_policy", "always", id="a policy is spelled as it is"),
        pytest.param("on_disconnect", "forget", id="a silent node's allocations are kept or replaced, nothing else"),
        pytest.param("security_profile", {}, id="what no issue has brought yet is refused"),
        pytest.param("replica", 3, id="so is a slip of the pen"),
        pytest.param("status", {}, id="so is what the server owns"),
        pytest.param("generation", 1, id="and its generation"),
        pytest.param("kind", "Pod", id="another kind"),
        pytest.param("working_dir", "srv", id="a relative working_dir"),
        pytest.param("command", ["a\x00b"], id="a NUL in an argument"),
        pytest.param("env", {"A": "a\x00b"}, id="a NUL in a variable"),
        pytest.param("env", {"1A": "x"}, id="a variable's name that starts with a digit"),
        pytest.param("env", {"A=B": "x"}, id="a variable's name with an equals sign"),
        pytest.param("labels", {"-app": "web"}, id="a label key that starts with a dash"),
        pytest.param("labels", {"a/b/c": "web"}, id="a label key with two slashes"),
        pytest.param("labels", {"/app": "web"}, id="a label key with an empty prefix"),
        pytest.param("labels", {"a" * 64: "web"}, id="a label key too long"),
        pytest.param("labels", {"app": "a b"}, id="a label value with a blank"),
        pytest.param("labels", {"app": "a" * 64}, id="a label value too long"),
        pytest.param("node_selector", {"zone": "a,b"}, id="a selector's value with a comma"),
        pytest.param("labels", {f"l{n}": "" for n in range(65)}, id="too many labels"),
        pytest.param("image", "", id="no image"),
        pytest.param("image", "upper/CASE", id="an image in upper case"),
        pytest.param("image", "https://example.com/app", id="an image with a scheme"),
        pytest.param("runtime_class", "Edera Zone", id="a runtime class that is no name"),
    ],
)
def test_what_is_not_understood_is_refused_at_its_field(field: str, value: object) -> None:
    assert refusal(**{field: value}).startswith(field)


@pytest.mark.parametrize("field", ["id", "image", "runtime_class", "memory_mb", "cpu_millicores"])
def test_what_must_be_given_is_asked_for(field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        WorkloadManifest.model_validate({k: v for k, v in SEED.items() if k != field})
    assert [(e["loc"], e["type"]) for e in caught.value.errors()] == [((field,), "missing")]


def test_an_empty_map_may_be_left_open_as_people_do_in_yaml() -> None:
    manifest = WorkloadManifest.model_validate(SEED | {"labels": None, "env": None, "node_selector": None})
    assert (manifest.labels, manifest.env, manifest.node_selector) == ({}, {}, {})


@pytest.mark.parametrize(
    "port",
    [
        pytest.param({"port": 0}, id="zero"),
        pytest.param({"port": 65_536}, id="past the last"),
        pytest.param({"port": -1}, id="negative"),
        pytest.param({"port": "80"}, id="text"),
        pytest.param({}, id="missing"),
        pytest.param({"port": 80, "host_port": 0}, id="host port zero"),
        pytest.param({"port": 80, "host_port": 70_000}, id="host port past the last"),
        pytest.param({"port": 80, "host_ip": "localhost"}, id="a name for an address"),
        pytest.param({"port": 80, "host_ip": "::1"}, id="an IPv6 address"),
        pytest.param({"port": 80, "host_ip": "127.0.0.256"}, id="an address out of range"),
        pytest.param({"port": 80, "protocol": "sctp"}, id="an unknown protocol"),
        pytest.param({"port": 80, "protocol": "TCP"}, id="a protocol in capitals"),
        pytest.param({"port": 80, "hostPort": 80}, id="another spelling"),
    ],
)
def test_a_bad_port_is_refused_at_its_place(port: dict[str, object]) -> None:
    assert refusal(ports=[port]).startswith("ports.0.")


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        pytest.param({}, {}, True, id="the same port twice"),
        pytest.param({}, {"host_ip": "0.0.0.0"}, True, id="once on one address and once on all"),
        pytest.param({"host_ip": "0.0.0.0"}, {"host_ip": "10.0.0.1"}, True, id="once on all addresses and once on one"),
        pytest.param({}, {"host_ip": "127.0.0.2"}, False, id="on two addresses"),
        pytest.param({}, {"protocol": "udp"}, False, id="of two protocols"),
        pytest.param({}, {"host_port": 8081}, False, id="two ports"),
        pytest.param({"host_port": None}, {"host_port": None}, False, id="without a host port"),
    ],
)
def test_a_host_port_leads_to_one_port_only(one: dict[str, object], other: dict[str, object], *, clash: bool) -> None:
    ports = [{"port": 80, "host_port": 8080} | one, {"port": 81, "host_port": 8080} | other]
    if clash:
        assert "host_port 8080/tcp is given twice" in refusal(ports=ports)
    else:
        assert len(WorkloadManifest.model_validate(SEED | {"ports": ports}).ports) == 2


@pytest.mark.parametrize(
    ("a", "b", "overlap"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("0.0.0.0", "10.0.0.1", True),
        ("127.0.0.1", "10.0.0.1", False),
    ],
)
def test_addresses_overlap_when_they_are_the_same_or_one_means_all(a: str, b: str, *, overlap: bool) -> None:
    assert ips_overlap(a, b) is overlap


OTHER_VALUES: dict[str, Any] = {
    "image": "localhost/other",
    "runtime_class": "gvisor",
    "memory_mb": 65,
    "cpu_millicores": 101,
    "labels": {"a": "b"},
    "replicas": 2,
    "command": ("sh",),
    "args": ("x",),
    "env": {"A": "b"},
    "working_dir": "/srv",
    "restart_policy": RestartPolicy.NEVER,
    "max_restarts": 3,
    "ports": ({"port": 80},),
    "node_selector": {"zone": "a"},
    "termination_grace_s": 11,
    "max_unavailable": 2,
}


@pytest.mark.parametrize("field", sorted(OTHER_VALUES))
def test_the_hash_changes_with_exactly_the_fields_that_replace(field: str) -> None:
    changed = a_spec(**{field: OTHER_VALUES[field]})
    assert (changed.replacing_hash() != a_spec().replacing_hash()) is (field in REPLACING_FIELDS)


def test_every_field_is_either_replacing_or_in_place() -> None:
    """A new field must be put on one side, and into OTHER_VALUES above; on_disconnect has one value only as yet."""
    assert set(WorkloadSpec.model_fields) == {*OTHER_VALUES, "on_disconnect"}
    assert set(WorkloadSpec.model_fields) >= REPLACING_FIELDS


def test_the_hash_depends_on_values_alone() -> None:
    assert a_spec(env={"A": "1", "B": "2"}).replacing_hash() == a_spec(env={"B": "2", "A": "1"}).replacing_hash()
    stored = WorkloadSpec.model_validate_json(a_spec(ports=({"port": 80},)).model_dump_json())
    assert stored.replacing_hash() == a_spec(ports=({"port": 80},)).replacing_hash()
    # Rows of earlier versions hold this: another value here would restart every workload at an upgrade.
    assert a_spec().replacing_hash() == "d2a1bb5086b60993"
    assert len(a_spec().replacing_hash()) == 16


def test_the_manifest_and_the_server_object_hash_as_their_spec() -> None:
    assert a_manifest().replacing_hash() == a_spec().replacing_hash() == a_workload().spec.replacing_hash()


@pytest.mark.parametrize(
    ("policy", "given", "limit"),
    [
        (RestartPolicy.ALWAYS, None, None),
        (RestartPolicy.ALWAYS, 2, 2),
        (RestartPolicy.ON_FAILURE, None, 6),
        (RestartPolicy.ON_FAILURE, 0, 0),
        (RestartPolicy.NEVER, None, 0),
        (RestartPolicy.NEVER, 5, 0),
    ],
)
def test_how_often_the_agent_restarts(policy: RestartPolicy, given: int | None, limit: int | None) -> None:
    assert a_spec(restart_policy=policy, max_restarts=given).restart_limit == limit


def test_a_workload_survives_the_way_through_json() -> None:
    workload = a_workload(labels={"app": "web"}, ports=({"port": 80, "host_port": 8080},))
    assert Workload.model_validate_json(workload.model_dump_json()) == workload
    assert "deleted_at" not in workload.to_json()
    assert workload.etag == "uid-web.1"


def test_objects_can_not_be_changed() -> None:
    with pytest.raises(ValidationError):
        a_spec().replicas = 2  # type: ignore[misc]  # that it is an error is what is tested
    assert a_spec().with_(replicas=2).replicas == 2
