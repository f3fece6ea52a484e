"""Is this machine ready? Every check names what it found, and what to do if that is a fault."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

from labkit.errors import LabkitError
from labkit.zoo import artifacts, damaged, manifest

PYTHON = (3, 11)
FREE_BYTES = 2_000_000_000
INSTALL = "pip install -e ."


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name: of what was looked at. ok: whether it will do. found: what is there. remedy: what to do where it will not.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""


def checks() -> list[Check]:
    """Python, packages, device, disk, compiler, Jupyter kernel and shipped artifacts, in this order."""
    return [python(), *packages(), device(), disk(), compiler(), kernel(), shipped()]


def python() -> Check:
    """Python is new enough."""
    oldest = ".".join(map(str, PYTHON))
    return Check("Python", sys.version_info >= PYTHON, platform.python_version(), f"Install Python {oldest} or newer.")


def packages() -> list[Check]:
    """Every package that labkit's own metadata asks for is here, within the range that labkit supports."""
    try:
        from packaging.requirements import Requirement

        asked = [Requirement(text) for text in importlib.metadata.requires("labkit") or []]
    except ModuleNotFoundError as error:  # PackageNotFoundError, for labkit itself, is one too
        return [Check("packages", False, f"{error.name} is not installed", f"Install labkit: {INSTALL}")]
    # A checkout's metadata holds exact pins too. They are what numbers were measured with; the ranges are what works.
    ranges = [one for one in asked if not any(spec.operator == "==" for spec in one.specifier)]
    return [_package(one.name, one.specifier) for one in ranges if not one.marker or one.marker.evaluate({"extra": ""})]


def _package(name: str, supported: object) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(f"package {name}", False, "not installed", f"pip install '{name}{supported}'")
    ok = supported.contains(version, prereleases=True)
    found = version if ok else f"{version}, which is not {supported}"
    return Check(f"package {name}", ok, found, f"pip install '{name}{supported}'")


def device() -> Check:
    """What models would run on; at fault if PyTorch cannot be loaded, or a GPU be asked its name."""
    try:
        import torch

        torch.zeros(1)
    except Exception as error:  # a half-removed one, a shared library that does not load: anything
        found = f"PyTorch does not load: {type(error).__name__}: {error}"
        return Check("device", False, found, "pip install --force-reinstall torch")
    try:
        cuda = f"CUDA, {torch.cuda.get_device_name()}; " if torch.cuda.is_available() else ""
    except Exception as error:
        found = f"the GPU does not answer: {type(error).__name__}: {error}"
        return Check("device", False, found, "Look at the driver with nvidia-smi, or hide the GPU: CUDA_VISIBLE_DEVICES=")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("device", True, f"{cuda}CPU, {cores} core{'s' if cores != 1 else ''}")


def disk() -> Check:
    """There is room in the working folder."""
    free = shutil.disk_usage(Path.cwd()).free
    remedy = f"Free {FREE_BYTES / 1e9:g} GB, or work in another folder."
    return Check("free disk", free >= FREE_BYTES, f"{free / 1e9:.1f} GB in {Path.cwd()}", remedy)


def compiler() -> Check:
    """What training could be compiled with. For information: without, it runs all the same, slower."""
    found = [path for name in ("g++", "clang++") if (path := shutil.which(name))]
    found += ["Triton"] if importlib.util.find_spec("triton") else []
    return Check("compiler", True, ", ".join(found) or "none: training runs uncompiled, and slower")


def kernel() -> Check:
    """Jupyter can start the kernel that the notebooks ask for."""
    remedy = "pip install -e '.[notebook]'"
    try:
        from jupyter_client.kernelspec import KernelSpecManager
    except ImportError:
        return Check("Jupyter kernel", False, "Jupyter is not installed", remedy)
    specs = KernelSpecManager().find_kernel_specs()
    found = specs.get("python3") or f"no kernel python3 among: {', '.join(sorted(specs)) or 'none'}"
    return Check("Jupyter kernel", "python3" in specs, found, remedy)


def shipped() -> Check:
    """Every shipped file has the checksum of the manifest."""
    remedy = "Install labkit anew: these files are not what was shipped."
    try:
        broken, models = damaged(), len(manifest()["models"])
    except (LabkitError, OSError) as error:
        return Check("artifacts", False, str(error), "Install labkit anew.")
    if broken:
        return Check("artifacts", False, f"damaged or missing: {', '.join(broken)}", remedy)
    return Check("artifacts", True, f"{models} models, intact, in {artifacts()}")
