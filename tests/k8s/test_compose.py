"""docker-compose.yml, as Docker Compose itself reads it: what starts, in which order, and who may reach it."""

import pytest

from tests.k8s.rendering import ROOT, Manifest, compose

PROFILES = {"webhooks": "webhooks", "ingest-gpu": "gpu", "vllm": "vllm"}


@pytest.fixture
def services() -> dict[str, Manifest]:
    found: dict[str, Manifest] = compose()["services"]
    return found


def test_without_a_profile_everything_but_the_optional_starts(services: dict[str, Manifest]) -> None:
    assert {name: each["profiles"][0] for name, each in services.items() if "profiles" in each} == PROFILES


def test_nothing_starts_before_what_it_needs_is_healthy(services: dict[str, Manifest]) -> None:
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if needed == "topics" else "service_healthy"
            assert how["condition"] == wanted, f"{name} on {needed}"
            assert "profiles" not in services[needed], f"{name} needs {needed}, which may not be there"
            assert needed == "topics" or "test" in services[needed]["healthcheck"]
        if service["image"].startswith("headrace") and name != "topics":
            assert "topics" in service["depends_on"]


def test_every_service_says_whether_it_is_healthy(services: dict[str, Manifest]) -> None:
    assert [name for name, each in services.items() if "healthcheck" not in each] == []


def test_only_this_machine_reaches_a_port(services: dict[str, Manifest]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    assert len({port["published"] for port in ports}) == len(ports)


def test_our_containers_have_no_rights_and_write_to_volumes_alone(services: dict[str, Manifest]) -> None:
    for name, service in services.items():
        if service["image"].startswith("headrace"):
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"]
            assert service["security_opt"] == ["no-new-privileges:true"]
            assert service["tmpfs"] == ["/tmp"]  # noqa: S108  # the container's


def test_every_flow_has_state_of_its_own_that_outlives_its_container(services: dict[str, Manifest]) -> None:
    for name, service in services.items():
        if service.get("command", [""])[0] == "run":
            assert "/data" in {volume["target"] for volume in service["volumes"]}, name


def test_who_writes_and_reads_objects_shares_them(services: dict[str, Manifest]) -> None:
    for name in ("ingest", "ingest-gpu", "gateway"):
        targets = {volume["target"]: volume["source"] for volume in services[name]["volumes"]}
        assert targets[services[name]["environment"]["HEADRACE_OBJECT_STORE"]] == "objects"


def test_every_mounted_file_exists(services: dict[str, Manifest]) -> None:
    mounted = [v["source"] for each in services.values() for v in each.get("volumes", []) if v["type"] == "bind"]
    assert mounted
    assert [path for path in mounted if not (ROOT / path).exists()] == []


def test_gpus_are_reserved_where_they_are_used(services: dict[str, Manifest]) -> None:
    for name in ("ingest-gpu", "vllm"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert services["ingest-gpu"]["build"]["args"] == {"VARIANT": "cuda"}
