"""The launch files under configs/cluster: valid, of the installed Ray, with tokens and dashboards on loopback."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "cluster"


def _read(name: str) -> dict[str, Any]:
    body = yaml.safe_load((FOLDER / name).read_text())
    assert isinstance(body, dict)
    return body


def test_every_file_is_looked_at() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {"machines.yaml", "aws.yaml", "kuberay.yaml"}


@pytest.mark.parametrize("name", ["machines.yaml", "aws.yaml"])
def test_files_for_ray_up(name: str) -> None:
    import ray.autoscaler
    from ray.autoscaler._private.util import validate_config

    body = _read(name)
    defaults = Path(ray.autoscaler.__file__).parent / body["provider"]["type"] / "defaults.yaml"
    filled = {**yaml.safe_load(defaults.read_text()), **body}
    if name == "machines.yaml":
        from ray.autoscaler._private.local.config import prepare_local

        filled, _ = prepare_local(filled)
    validate_config(filled)
    starts = [*body["head_start_ray_commands"], *body["worker_start_ray_commands"]]
    starts = [line for line in starts if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert any(place.endswith(".ray/auth_token") for place in body["file_mounts"])


def test_the_kuberay_manifest() -> None:
    spec = _read("kuberay.yaml")["spec"]
    assert spec["rayVersion"] == version("ray")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]


@pytest.mark.parametrize("name", ["aws.yaml", "kuberay.yaml"])
def test_images_are_of_the_installed_ray(name: str) -> None:
    assert f"rayproject/ray:{version('ray')}-py311-gpu" in (FOLDER / name).read_text()


@pytest.mark.parametrize("name", ["machines.yaml", "aws.yaml", "kuberay.yaml"])
def test_no_credentials(name: str) -> None:
    text = (FOLDER / name).read_text()
    for word in ("AWS_SECRET", "AWS_ACCESS_KEY", "AKIA", "RAY_AUTH_TOKEN="):
        assert word not in text
