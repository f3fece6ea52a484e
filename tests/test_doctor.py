from __future__ import annotations

import importlib
import importlib.metadata
import json
import shutil
import sys
import types
from collections import namedtuple

import pytest

from labkit import doctor

zoo = importlib.import_module("labkit.zoo")  # `labkit.zoo` itself is the public function

ASKED = ["torch>=2.11", "typer >= 0.16", "numpy==2.0.1", "trl>=1.0; extra == 'oracles'"]


@pytest.fixture
def metadata(monkeypatch):
    """labkit's requirements and what is installed, as a test says."""
    installed = {"torch": "2.13.0+cpu", "typer": "0.29.2"}

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ASKED)
    monkeypatch.setattr(importlib.metadata, "version", version)
    return installed


@pytest.fixture
def shipped(monkeypatch, tmp_path):
    """Two shipped models of one file each, with a manifest."""
    names = [f"ladder/16x1/seed-{seed}/model.safetensors" for seed in (0, 1)]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    files = {name: zoo.sha256(tmp_path / name) for name in names}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": files, "models": {"one": {}, "two": {}}}))
    monkeypatch.setattr(zoo, "artifacts", lambda: tmp_path)
    monkeypatch.setattr(doctor, "artifacts", lambda: tmp_path)
    return tmp_path


def test_every_subject_is_looked_at_and_a_fault_has_a_remedy(metadata, shipped):
    found = doctor.checks()
    assert [check.name for check in found] == [
        "Python", "package torch", "package typer", "device", "free disk", "compiler", "Jupyter kernel", "artifacts"
    ]  # fmt: skip
    assert all(check.found for check in found)
    assert all(check.ok or check.remedy for check in found)


def test_python(monkeypatch):
    assert doctor.python().ok
    monkeypatch.setattr(sys, "version_info", (3, 10, 9))
    assert not doctor.python().ok and doctor.python().remedy == "Install Python 3.11 or newer."


def test_packages_in_range_pass_whatever_the_pins_and_extras(metadata):
    assert [(check.name, check.ok, check.found) for check in doctor.packages()] == [
        ("package torch", True, "2.13.0+cpu"),
        ("package typer", True, "0.29.2"),
    ]


def test_an_old_package_and_a_missing_one_are_faults(metadata):
    metadata["torch"] = "2.4.0"
    del metadata["typer"]
    torch, typer = doctor.packages()
    assert (torch.ok, torch.found, torch.remedy) == (False, "2.4.0, which is not >=2.11", "pip install 'torch>=2.11'")
    assert (typer.ok, typer.found, typer.remedy) == (False, "not installed", "pip install 'typer>=0.16'")


def test_labkit_without_metadata_is_a_fault(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    (check,) = doctor.packages()
    assert (check.ok, check.found) == (False, "labkit is not installed")
    assert check.remedy == "Install labkit: pip install -e ."


def test_the_device_is_named(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    assert doctor.device().ok and doctor.device().found.startswith("CUDA, H100; CPU, ")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.device().ok and doctor.device().found.startswith("CPU, ")


def test_a_torch_that_does_not_load_is_a_fault(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not doctor.device().ok and doctor.device().found.startswith("PyTorch does not load: ")


@pytest.mark.parametrize(("free", "ok"), [(1_900_000_000, False), (2_000_000_000, True)])
def test_free_disk(monkeypatch, free, ok):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "total used free")(0, 0, free))
    assert doctor.disk().ok is ok and doctor.disk().remedy == "Free 2 GB, or work in another folder."
    assert doctor.disk().found.startswith(f"{free / 1e9:.1f} GB in /")


def test_no_compiler_is_no_fault(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.compiler() == doctor.Check("compiler", True, "none: training runs uncompiled, and slower")


def test_the_kernel_of_the_notebooks(monkeypatch):
    from jupyter_client.kernelspec import KernelSpecManager

    monkeypatch.setattr(KernelSpecManager, "find_kernel_specs", lambda self: {"python3": "/kernels/python3"})
    assert doctor.kernel().ok and doctor.kernel().found == "/kernels/python3"
    monkeypatch.setattr(KernelSpecManager, "find_kernel_specs", lambda self: {"ir": "/kernels/ir"})
    assert not doctor.kernel().ok and doctor.kernel().found == "no kernel python3 among: ir"
    monkeypatch.setitem(sys.modules, "jupyter_client.kernelspec", None)
    assert doctor.kernel() == doctor.Check(
        "Jupyter kernel", False, "Jupyter is not installed", "pip install -e '.[notebook]'"
    )


def test_intact_artifacts(shipped):
    assert doctor.shipped() == doctor.Check("artifacts", True, f"2 models, intact, in {shipped}")


def test_damaged_and_missing_artifacts_are_named(shipped):
    first, second = sorted(shipped.rglob("*.safetensors"))
    first.write_text("another content")
    second.unlink()
    check = doctor.shipped()
    names = [f"ladder/16x1/seed-{seed}/model.safetensors" for seed in (0, 1)]
    assert not check.ok and check.found == f"damaged or missing: {names[0]}, {names[1]}"


def test_artifacts_without_a_manifest_are_a_fault(shipped):
    (shipped / "manifest.json").unlink()
    assert not doctor.shipped().ok and "a folder of models holds a manifest.json" in doctor.shipped().found


def test_half_a_torch_is_a_fault_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert not doctor.device().ok and "AttributeError" in doctor.device().found


def test_a_driver_that_fails_is_no_fault_of_pytorch(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: (_ for _ in ()).throw(RuntimeError("driver version")))
    found = doctor.device()
    assert not found.ok and "the GPU does not answer" in found.found and "nvidia-smi" in found.remedy
