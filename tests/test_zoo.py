"""Models by name: checksums are verified, pickles never read, unknown names answered with the known ones."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pruning import blocks, ledger
from labkit.schooling import write_manifest
from labkit.zoo import artifacts, damaged, load, manifest, sha256, zoo

NAMES = ["ladder/16x1/seed-0", "ladder/16x1/seed-1", "ladder/32x1/seed-0"]


@pytest.fixture
def folder(tmp_path):
    """Three untrained models, written down as a trained ladder is."""
    for name in NAMES:
        _, rung, seed = name.split("/")
        rung, seed = Rung.parse(rung), int(seed[-1])
        rung.build(seed).save_pretrained(tmp_path / name)
        record = {"rung": rung.name, "params": rung.params, "seed": seed, "tokens": 48, "loss_nats": [[1, 5.0]]}
        (tmp_path / name / "training.json").write_text(json.dumps(record))
    write_manifest(tmp_path)
    return tmp_path


def test_a_model_comes_back_with_its_weights_ready_to_evaluate(folder):
    model, made = load("ladder/16x1/seed-1", folder=folder), Rung(16, 1).build(1)
    assert not model.training
    for (name, a), b in zip(made.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_manifest_holds_the_checksum_of_every_file_and_what_was_trained(folder):
    listed = manifest(folder)
    on_disk = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    assert set(listed["files"]) == on_disk
    for name, checksum in listed["files"].items():
        assert checksum == sha256(folder / name) == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert sorted(listed["models"]) == NAMES
    assert listed["models"][NAMES[2]] == {"rung": "32x1", "params": Rung(32, 1).params, "seed": 0, "tokens": 48}


def test_the_frame_lists_the_models_by_size(folder):
    frame = zoo(folder)
    assert frame.columns.tolist() == ["name", "rung", "params", "seed", "tokens", "sha256"]
    assert frame["name"].tolist() == NAMES
    assert frame["sha256"][0] == sha256(folder / NAMES[0] / "model.safetensors")


def test_a_damaged_file_is_found_and_not_loaded(folder):
    assert damaged(folder) == []
    path = folder / NAMES[0] / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (folder / NAMES[1] / "config.json").unlink()
    assert sorted(damaged(folder)) == [f"{NAMES[0]}/model.safetensors", f"{NAMES[1]}/config.json"]
    for name, file in ((NAMES[0], path), (NAMES[1], folder / NAMES[1] / "config.json")):
        with pytest.raises(LabkitError, match=f"has the checksum of its manifest; got '{file}'. Install"):
            load(name, folder=folder)
    load(NAMES[2], folder=folder)


def test_pickled_weights_are_not_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return exec, ("raise SystemExit('unpickled')",)

    Rung(16, 1).config().save_pretrained(tmp_path)
    torch.save(Trap(), tmp_path / "pytorch_model.bin")
    with pytest.raises(LabkitError, match="read from safetensors alone.*got 'pytorch_model.bin'. Convert it"):
        load(str(tmp_path))


def test_a_folder_without_weights_and_one_with_broken_weights(tmp_path):
    with pytest.raises(LabkitError, match="a folder without weights: "):
        load(str(tmp_path))
    Rung(16, 1).config().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(LabkitError, match=f"a model is loaded from safetensors and a config.json.*{tmp_path}"):
        load(str(tmp_path))


def test_a_local_folder_is_loaded_by_its_path(folder):
    model = load(str(folder / NAMES[0]), folder="/nowhere")
    assert torch.equal(model.lm_head.weight, Rung(16, 1).build(0).lm_head.weight)


def test_a_pruned_model_whose_zeros_came_back_is_not_loaded(tmp_path):
    model = Rung(16, 1).build(0)
    weight = blocks.matrices(model)["model.layers.0.mlp.up_proj"].weight
    weight[:, :4] = 0
    ledger.record_masks(model)
    model.save_pretrained(tmp_path)
    assert load(str(tmp_path)).config.labkit_masks == model.config.labkit_masks
    weight[3, :2] = 0.5
    model.save_pretrained(tmp_path)
    with pytest.raises(LabkitError, match=f"model.layers.0.mlp.up_proj: 2 of {4 * len(weight)} zeros are zero no longer"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", ["ladder/16x1/seed-7", "ladder/16x1"])
def test_an_unknown_name_is_answered_with_the_nearest_and_all(folder, name):
    with pytest.raises(LabkitError, match=f"got '{name}'. Nearest: .*ladder/16x1/seed-.*All: {', '.join(NAMES)}"):
        load(name, folder=folder)


def test_a_hub_model_that_cannot_be_fetched(folder):
    with pytest.raises(LabkitError, match="in a local folder or on the hub; got .nobody/nothing .*Offline, put"):
        load("nobody/nothing", folder=folder)


def test_a_folder_without_a_manifest_and_one_that_is_no_json(tmp_path):
    with pytest.raises(LabkitError, match=f"holds a manifest.json; got '{tmp_path}'. Train one with `labkit ladder"):
        manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(LabkitError, match="manifest.json is JSON; got .*Restore the file"):
        manifest(tmp_path)


def test_what_is_shipped_is_whole_and_small():
    assert damaged() == []
    assert sum(p.stat().st_size for p in artifacts().rglob("*") if p.is_file()) <= 60e6
