"""The rows of a cluster are those of one machine, whatever is lost on the way, and an address that is dead is said to be."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from labkit import cluster, forward
from labkit.errors import LabkitError
from labkit.store import Store
from labkit.study import Study

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="of the extra `cluster`")

METRIC = """
import os, time
from pathlib import Path
import torch
from labkit import extension

@extension.metric
def held(logits, labels):
    folder = Path({folder!r})
    (folder / f"{{os.getppid()}}-{{time.time_ns()}}").touch()
    while not (folder / "go").exists():
        time.sleep(0.05)
    return torch.zeros(len(labels))
"""

STUDY = """
question = "Does it run?"
models = ["ladder/16x1/seed-0", "ladder/16x1/seed-1"]
compress = ["ladder/16x1/seed-0"]
abilities = ["recall"]
metrics = ["held"]
extensions = ["held.py"]
items = 10
[[compression]]
prune = { criterion = "magnitude", sparsity = 0.5 }
"""


TEXT_STUDY = """
question = "Is the text read there as here?"
compress = ["model"]
prompts = ["reverse"]
items = 2
text = { file = "mine.txt", length = 16 }
[[compression]]
prune = { criterion = "wanda", sparsity = 0.5 }
recover = { method = "lora", rank = 2, tokens = 1024 }
"""


def free_ports(count: int) -> list[int]:
    lines = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [line.getsockname()[1] for line in lines]
    for line in lines:
        line.close()
    return ports


@pytest.fixture
def uncompiled(monkeypatch):
    """Models as they are, here and in the processes that are started: compiling takes longer than measuring them."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setattr(forward, "compiled", lambda module: module)


@pytest.fixture
def nodes(monkeypatch, tmp_path):
    """A cluster of two nodes of one CPU each; the second may be killed."""
    # jsonschema's optional check of IRIs compiles a grammar, for seconds, in every process of Ray.
    (tmp_path / "light").mkdir()
    (tmp_path / "light" / "rfc3987_syntax.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "light"))
    monkeypatch.setitem(sys.modules, "rfc3987_syntax", None)
    for name, value in {"USAGE_STATS_ENABLED": "0", "worker_niceness": "0"}.items():
        monkeypatch.setenv(f"RAY_{name}", value)
    monkeypatch.setenv("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")  # where /dev/shm is small
    from ray.cluster_utils import Cluster

    def light() -> dict:
        # Named ports: without them a node waits for its agents to choose, 15 s at most.
        names = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port", "metrics_export_port")
        ports = dict(zip(names, free_ports(4), strict=True))
        return {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False, **ports}

    made = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **light()})
    second = made.add_node(**light())
    yield made, second
    made.shutdown()


@needs_ray
@pytest.mark.timeout(120)
def test_a_node_killed_in_the_middle_changes_no_row(nodes, tmp_path):
    made, second = nodes
    seen = tmp_path / "seen"
    seen.mkdir()
    (tmp_path / "held.py").write_text(METRIC.format(folder=str(seen)))
    (tmp_path / "study.toml").write_text(STUDY)
    study = Study.load(tmp_path / "study.toml")

    def kill() -> None:
        while len({path.name.split("-")[0] for path in seen.iterdir()}) < 2:  # a run is under way on either node
            time.sleep(0.05)
        made.remove_node(second, allow_graceful=False)
        (seen / "go").touch()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    store = cluster.run(study, "memory://labkit-test-cluster/rows", made.address, progress=False)
    killer.join()
    local = study.run(tmp_path / "local", progress=False)
    assert len(store.runs()) == 3 and store.runs() == local.runs()
    ours, theirs = store.frame(), local.frame()
    assert not ours.duplicated(["run", "ability", "metric", "item"]).any()
    pd.testing.assert_frame_equal(ours.drop(columns="value"), theirs.drop(columns="value"))
    np.testing.assert_allclose(ours["value"], theirs["value"], rtol=0, atol=1e-3)
    assert set(store.provenance()["run"]) == set(study.runs())


def text_study(folder: Path) -> None:
    """A study of a model that reads bytes, pruned and trained on a text beside the file."""
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    bytewise.pre_tokenizer, bytewise.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytewise).save_pretrained(folder / "model")
    config = GPT2Config(n_embd=16, n_head=1, n_layer=1, vocab_size=256, n_positions=1024, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    (folder / "mine.txt").write_text("the cat sat on the mat, and so did I. " * 60)
    (folder / "mine.toml").write_text(TEXT_STUDY)


@needs_ray
@pytest.mark.timeout(120)
def test_a_study_with_a_text_named_from_its_folder_has_the_rows_and_addresses_of_one_machine(uncompiled, nodes, tmp_path, monkeypatch):
    text_study(tmp_path)
    monkeypatch.chdir(tmp_path)  # a worker stands in a folder of its own
    study = Study.load("mine.toml")
    assert study.text.file == "mine.txt"
    store = cluster.run(study, tmp_path / "there", nodes[0].address, progress=False)
    local = study.run(tmp_path / "here", progress=False)
    assert len(store.runs()) == 2 and store.runs() == local.runs() and set(store.provenance()["run"]) == set(study.runs())
    ours, theirs = store.frame(), local.frame()
    pd.testing.assert_frame_equal(ours.drop(columns="value"), theirs.drop(columns="value"))
    np.testing.assert_allclose(ours["value"], theirs["value"], rtol=0, atol=1e-3)


@needs_ray
@pytest.mark.parametrize("kind", ["refused", "silent", "another"])
def test_an_address_that_does_not_answer_is_said_within_ten_seconds(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rfc3987_syntax", None)
    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    study = Study("s", "?", ("ladder/16x1/seed-0",), abilities=("facts",), items=5)
    (port,) = free_ports(1)
    line = None if kind == "refused" else socket.create_server(("127.0.0.1", port))
    if kind == "another":

        def answer() -> None:
            with line.accept()[0] as other:
                other.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
    why = {"refused": "refused", "silent": "timed out", "another": "what answers is not Ray"}[kind]
    with pytest.raises(LabkitError, match=rf"answers at its address; got '127.0.0.1:{port} \(.*{why}.*Is the cluster up"):
        cluster.run(study, tmp_path / "rows", f"127.0.0.1:{port}", progress=False)
    assert not (tmp_path / "rows").exists()
    if line is not None:
        line.close()
    assert 2 * 4.0 < 10, "seconds to connect and to be greeted, as they are outside of tests"


@needs_ray
@pytest.mark.parametrize("address", ["auto", "host", "host:port", ":6379", "host:70000", "ray://host:10001"])
def test_an_address_is_a_host_and_a_port(address):
    with pytest.raises(LabkitError, match=r"a Ray cluster has an address HOST:PORT; got .* Write e.g. --ray 10.0.0.1:6379"):
        cluster.check_address(address)


def test_without_ray_the_remedy_is_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LabkitError, match=r"needs Ray; got 'no package ray'. pip install 'labkit\[cluster\]'"):
        cluster._ray()


def test_importing_the_module_does_not_import_ray():
    code = "import labkit.cluster, sys; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_worker_of_another_labkit_measures_nothing():
    study = Study("s", "?", ("ladder/16x1/seed-0",), abilities=("facts",), items=5)
    failure, rule, received, remedy = cluster._measured(cluster._shipped(study), "0" * 16, ("ladder/16x1/seed-0", None))
    assert not failure and "the workers have the labkit" in rule and "another address" in received and "same" in remedy


def test_a_worker_hands_back_a_part_that_another_store_adopts(tmp_path):
    study = Study("s", "?", ("ladder/16x1/seed-0",), abilities=("facts",), items=5)
    [(name, (_, job))] = study.runs().items()
    store = Store(tmp_path, create=True)
    part = cluster._measured(cluster._shipped(study), name, job)
    assert store.adopt(name, part) and not store.adopt(name, part)
    assert len(store.frame()) == 5 * 4 and Path(tmp_path / "rows" / f"{name}.parquet").read_bytes() == part


def test_a_worker_needs_no_copy_of_the_text_and_stays_in_its_folder(uncompiled, tmp_path, monkeypatch):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    text_study(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    study = Study.load("mine.toml")
    name, (_, job) = list(study.runs().items())[1]
    shipped = cluster._shipped(study)
    (tmp_path / "here" / "mine.txt").unlink()
    monkeypatch.chdir(tmp_path / "there")
    part = cluster._measured(shipped, name, job)
    assert Store(tmp_path / "rows", create=True).adopt(name, part) and Path.cwd() == tmp_path / "there"
