"""Names of the hub: one question to it, the commit it answers, and an error that says what to do for each refusal."""

from __future__ import annotations

import httpx
import huggingface_hub
import pytest

from labkit import hub
from labkit.errors import LabkitError

COMMIT, OTHER = "a" * 40, "b" * 40
ID = "someone/small-model"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub that holds one model at one commit, which is its main branch."""
    place = tmp_path / "models--someone--small-model"
    (place / "snapshots" / COMMIT).mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    for name in ("config.json", "model.safetensors"):
        (place / "snapshots" / COMMIT / name).write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return place


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def answers(monkeypatch):
    """Let the hub answer as said; what it was asked is listed."""
    asked = []

    def let(status=200, error=None, headers=None, raises=None):
        def request(method, url, **_):
            asked.append(url)
            if raises:
                raise raises
            told = {**({"X-Error-Code": error} if error else {}), **(headers or {})}
            return httpx.Response(status, headers=told, request=httpx.Request(method, url))

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.file_download._httpx_follow_hub_redirects_with_backoff", request)
        return asked

    return let


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/model", True),
        ("EleutherAI/pythia-70m@step3000", True),
        ("owner/model@refs/pr/1", True),
        ("model", False),
        ("ladder/16x1", False),
        ("ladder/16x1/seed-0", False),
        ("ladder/*", False),
        ("./model", False),
        ("owner/model@", False),
    ],
)
def test_what_is_an_id(name, expected):
    assert hub.is_id(name) == expected


def test_a_revision_stands_in_the_name_or_beside_it():
    assert hub.parse("a/b") == ("a/b", "main")
    assert hub.parse("a/b@v1") == hub.parse("a/b", "v1") == hub.parse("a/b@v1", "v1") == ("a/b", "v1")
    with pytest.raises(LabkitError, match="a model has one revision; got .*a/b@v1 and revision='v2'.*Leave one"):
        hub.parse("a/b@v1", "v2")


def test_the_hub_says_which_commit_a_branch_is(answers, cache):
    asked = answers(headers={"X-Repo-Commit": OTHER, "ETag": '"x"'})
    assert hub.commit(f"{ID}@dev") == OTHER
    assert asked == [f"https://huggingface.co/{ID}/resolve/dev/config.json"]


def test_a_commit_in_the_cache_is_not_asked_for(answers, cache):
    asked = answers(raises=AssertionError("asked"))
    assert hub.commit(ID, COMMIT) == COMMIT and asked == []


def test_offline_the_cache_answers(cache):
    assert hub.commit(ID) == COMMIT
    assert hub.folder(ID) == cache / "snapshots" / COMMIT


@pytest.mark.parametrize("reason", ["HF_HUB_OFFLINE is set", "no route"])
def test_offline_and_not_in_the_cache_names_the_folder_at_once(answers, empty_cache, reason):
    if "route" in reason:
        asked = answers(raises=httpx.ConnectError("no route"))
    with pytest.raises(LabkitError) as error:
        hub.commit(f"{ID}@v2")
    assert error.value.rule == "a model is a local folder, in the local cache, or fetched from the hub"
    assert ID in error.value.received and error.value.received.endswith(reason)
    assert str(empty_cache / "models--someone--small-model") in error.value.remedy
    assert f"`hf download {ID} --revision v2`" in error.value.remedy and "path of the folder that it names" in error.value.remedy
    assert "route" not in reason or len(asked) == 1  # no second try: what cannot be reached is said at once


def test_a_hub_that_is_down_leaves_the_cache(answers, cache):
    answers(raises=httpx.ReadTimeout("slow"))
    assert hub.commit(ID) == COMMIT
    answers(status=503)
    assert hub.commit(ID) == COMMIT


def test_weights_that_are_not_in_the_cache_are_missed_offline(cache):
    (cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    assert hub.folder(ID, weights=False).name == COMMIT
    with pytest.raises(LabkitError, match="HF_HUB_OFFLINE is set"):
        hub.folder(ID)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (403, "GatedRepo", f"a gated model is opened to who has accepted its terms; got '{ID}'. Accept its terms on "
         f"https://huggingface.co/{ID} and run `hf auth login`"),
        (404, "RevisionNotFound", f"a revision is a branch, tag or commit that the model has; got '{ID}@gone'. Take "
         f"one from https://huggingface.co/{ID}/commits/main"),
        (404, "EntryNotFound", f"a model has a config.json; got '{ID}@gone, which has none'. Name a model that opens"),
        (401, "RepoNotFound", f"a model of that name is on the hub, and open to you; got '{ID}'. Look it up"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_said_with_the_remedy(answers, empty_cache, status, error, message):
    answers(status, error)
    with pytest.raises(LabkitError) as told:
        hub.commit(ID, "gone")
    assert message in str(told.value)


def test_an_answer_that_is_not_the_hubs(answers, empty_cache):
    answers(200)
    with pytest.raises(LabkitError, match="what answers is not the hub: look at HF_ENDPOINT"):
        hub.commit(ID)


def test_what_is_fetched_is_one_commit_without_pickles_or_copies(answers, empty_cache, monkeypatch, tmp_path):
    answers(headers={"X-Repo-Commit": OTHER, "ETag": '"x"'})
    told = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **how: told.update(how, repo=repo) or tmp_path)
    hub.folder(ID)
    assert told["repo"] == ID and told["revision"] == OTHER
    fetched = huggingface_hub.utils.filter_repo_objects(
        ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "merges.txt", "pytorch_model.bin",
         "model.gguf", "consolidated.safetensors", "original/model.safetensors", "onnx/config.json"],
        allow_patterns=told["allow_patterns"], ignore_patterns=told["ignore_patterns"],
    )  # fmt: skip
    assert [*fetched] == ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "merges.txt"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(LabkitError, match=rf"fetched whole; got '{ID}@{OTHER} \(OSError: full\)'. Run it again"):
        hub.folder(ID)


def test_what_the_cache_holds_opens_without_a_network(cache, monkeypatch):
    def unreachable(*_, **__):
        raise httpx.ConnectError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_tree", unreachable)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", unreachable)
    assert hub.folder(ID, COMMIT) == cache / "snapshots" / COMMIT
    (cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(LabkitError, match="a model is fetched whole"):
        hub.folder(ID, COMMIT)


def test_a_transfer_that_was_cut_off_is_to_be_run_again(cache, monkeypatch):
    def slow(*_, **__):
        raise httpx.ReadTimeout("too slow")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", slow)
    with pytest.raises(LabkitError, match="a model is fetched whole; got .*Run it again"):
        hub.folder(ID, COMMIT)
