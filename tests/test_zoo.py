"""Models by name: checksums are verified, pickles never read, unknown names answered with the known ones."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from labkit import forward
from labkit.abilities import corpus, vocabulary
from labkit.compression import Compression
from labkit.cost import cost
from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.pairs import Pair
from labkit.planning import foretell
from labkit.prompts import TEMPLATES
from labkit.pruning import blocks, drop_layers, ledger, prune, shrink
from labkit.schooling import write_manifest
from labkit.study import Study
from labkit.texts import Text
from labkit.verdict import judge
from labkit.zoo import artifacts, damaged, load, manifest, model_config, sha256, tokenizer, weights_id, zoo

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
    with pytest.raises(LabkitError, match="the folder of a model holds a config.json; got 'a folder without one: "):
        load(str(tmp_path))
    Rung(16, 1).config().save_pretrained(tmp_path)
    with pytest.raises(LabkitError, match="a folder without weights: "):
        load(str(tmp_path))
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
    for where in (folder, "/nowhere", None):  # with or without a manifest
        with pytest.raises(LabkitError, match="fetched from the hub; got 'nobody/nothing, which.*copy the folder models--nobody--nothing"):
            load("nobody/nothing", folder=where)


def test_a_folder_without_a_manifest_and_one_that_is_no_json(tmp_path):
    with pytest.raises(LabkitError, match=f"holds a manifest.json; got '{tmp_path}'. Train one with `labkit ladder"):
        manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(LabkitError, match="manifest.json is JSON, of files and models; got .*Restore the file"):
        manifest(tmp_path)


def test_what_is_shipped_is_whole_and_small():
    assert damaged() == []
    assert sum(p.stat().st_size for p in artifacts().rglob("*") if p.is_file()) <= 70e6


# -- models of others ---------------------------------------------------------------------------------------------------

SMALL = {"vocab_size": vocabulary.SIZE, "bos_token_id": None, "eos_token_id": None, "pad_token_id": vocabulary.PAD}
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48, "head_dim": 16}
FAMILIES = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False, **SMALL),
    "gpt2": GPT2Config(n_embd=32, n_head=2, n_layer=2, n_positions=64, **SMALL),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True, **SMALL),
}
COMMIT = "c" * 40
CALIBRATION = torch.from_numpy(corpus(0).calibration(8))


def built(config, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def in_cache(cache, config, monkeypatch, name="models--someone--small"):
    """A model as the hub's cache keeps it, at a commit that is its main branch."""
    built(config).save_pretrained(cache / name / "snapshots" / COMMIT)
    (cache / name / "refs").mkdir()
    (cache / name / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


def test_a_hub_model_is_read_from_the_commit_that_its_name_stands_for(tmp_path, monkeypatch):
    in_cache(tmp_path, FAMILIES["llama"], monkeypatch)
    model = load("someone/small")
    assert model.config._commit_hash == COMMIT == load("someone/small", revision=COMMIT).config._commit_hash
    assert torch.equal(model.lm_head.weight, built(FAMILIES["llama"]).lm_head.weight)
    assert weights_id("someone/small") == weights_id(f"someone/small@{COMMIT}") == f"commit {COMMIT}"
    with pytest.raises(LabkitError, match="a revision is one of a hub model; got .*revision='v1'"):
        load("ladder/16x1/seed-0", revision="v1")


def test_a_study_measures_hub_models_and_folders_as_it_does_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(forward, "compiled", lambda module: module)
    in_cache(tmp_path / "cache", FAMILIES["llama"], monkeypatch)
    names = [f"someone/small@{COMMIT}"]
    for family in ("gpt2", "qwen3"):
        names.append(str(tmp_path / family))
        built(FAMILIES[family]).save_pretrained(names[-1])
    ways = [
        {"prune": {"criterion": "wanda", "sparsity": 0.5}, "recover": {"method": "lora", "tokens": 3072}},
        {"drop_layers": {"keep": 1}, "distill": {"tokens": 3072}},
        {"shrink": {"ffn": 16}},
    ]
    study = Study(
        "own", "?", tuple(names), tuple(names), tuple(map(Compression.parse, ways)), ("recall", "facts"), 20,
        pairs=(Pair(names[0], names[1], "made smaller"),),
    )  # fmt: skip
    store = study.run(tmp_path / "rows", progress=False)
    rows, of_run = store.frame(), store.provenance().set_index("run")
    assert (rows.groupby("run").size() == rows.groupby("run").size().iloc[0]).all()
    assert rows.groupby("model")["compression"].nunique().tolist() == [4, 4, 4]
    ran = rows.drop_duplicates("run").set_index("run")
    for run, row in ran[ran["model"] == names[0]].iterrows():
        assert of_run.loc[run, "artifacts"] == {names[0]: f"commit {COMMIT}"}
    dense_of_pair = ran[(ran["model"] == names[1]) & (ran["compression"] == "made smaller")]
    assert dense_of_pair["rung"].tolist() == [f"small@{COMMIT}"]
    verdicts = judge(rows[rows["model"] == names[2]])
    assert set(verdicts["rung"]) == {"qwen3"} and verdicts["compression"].nunique() == 3
    assert cost(load(names[1]), length=8, repeats=1).parameters == sum(p.numel() for p in built(FAMILIES["gpt2"]).parameters())


def compressed(model):
    """Name -> model, for each verb that changes what is saved."""
    yield "prune", prune(model, "wanda", 0.5, calibration=CALIBRATION)
    yield "drop_layers", drop_layers(model, 1, calibration=CALIBRATION)
    yield "shrink", shrink(model, ffn=16, heads=1, width=16, importance="magnitude")


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_what_the_architecture_of_transformers_expects(family, tmp_path):
    """vLLM and llama.cpp's converter read `architectures`, then tensors by their names: no more, no fewer, of one dtype."""
    for verb, model in compressed(built(FAMILIES[family], torch.bfloat16).eval()):
        model.save_pretrained(tmp_path / verb)
        written = json.loads((tmp_path / verb / "config.json").read_text())
        kind = getattr(transformers, written["architectures"][0])
        own = {key: written.pop(key) for key in [*written] if key.startswith("labkit_")}
        assert own and json.loads(json.dumps(own)) == own
        config = type(model.config).from_dict(written)  # without labkit's keys it is the same model
        assert set(written) - {"transformers_version"} <= set(config.to_dict())
        with torch.device("meta"):
            expected = {name: [*tensor.shape] for name, tensor in kind(config).state_dict().items()}
        with safe_open(tmp_path / verb / "model.safetensors", "pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}
            assert file.metadata() == {"format": "pt"}
        if config.tie_word_embeddings:
            expected.pop("lm_head.weight")
        assert {name: tensor.get_shape() for name, tensor in found.items()} == expected, verb
        assert {tensor.get_dtype() for tensor in found.values()} == {"BF16"} and written["dtype"] == "bfloat16"
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / verb)
        assert type(plain) is kind and torch.equal(plain(CALIBRATION).logits, model(CALIBRATION).logits)


def test_dtype_and_device_map(tmp_path):
    built(FAMILIES["llama"], torch.bfloat16).save_pretrained(tmp_path)
    assert load(str(tmp_path)).dtype == torch.bfloat16
    placed = load(str(tmp_path), dtype="float32", device_map="auto")
    plain = load(str(tmp_path), dtype=torch.float32)
    assert placed.dtype == torch.float32 and torch.equal(placed(CALIBRATION).logits, plain(CALIBRATION).logits)
    with pytest.raises(LabkitError, match="a known dtype is needed; got 'bfloat'. Nearest: bfloat16"):
        load(str(tmp_path), dtype="bfloat")


def test_a_pruned_model_in_float16_is_the_one_that_transformers_reads(tmp_path):
    """Rotations stay in float32: narrowed, far positions would be others."""
    prune(built(FAMILIES["llama"], torch.float32), "magnitude", 0.5).save_pretrained(tmp_path / "pruned")
    half = load(str(tmp_path / "pruned"), dtype="float16")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.float16).eval()
    buffers = {name: buffer.dtype for name, buffer in expected.named_buffers()}
    assert torch.float32 in buffers.values()
    assert {name: buffer.dtype for name, buffer in half.named_buffers()} == buffers
    assert half.config.dtype == torch.float16
    tokens = torch.randint(3, 30, (2, 16), generator=torch.Generator().manual_seed(0))
    assert torch.equal(half(tokens).logits, expected(tokens).logits)
    half.save_pretrained(tmp_path / "half")
    assert torch.equal(load(str(tmp_path / "half"))(tokens).logits, half(tokens).logits)


def test_weights_that_float16_has_no_room_for_are_no_violation(tmp_path):
    """1e-9 is 0 in float16: one zero more than were pruned. A pruned weight that came back is found all the same."""
    dense = built(FAMILIES["llama"], torch.float32)
    pruned = prune(dense, "magnitude", 0.5)
    name, matrix = next(iter(blocks.matrices(pruned).items()))
    row, column = (matrix.weight != 0).nonzero()[0].tolist()
    matrix.weight.data[row, column] = 1e-9
    pruned.save_pretrained(tmp_path / "small")
    half = load(str(tmp_path / "small"), dtype="float16")
    assert half.dtype == torch.float16 and not half.training
    ledger.check_masks(half)
    zeros = {n: int((m.weight == 0).sum()) for n, m in blocks.matrices(pruned).items()}
    assert {n: int((m.weight == 0).sum()) for n, m in blocks.matrices(half).items()} == zeros | {name: zeros[name] + 1}
    next(iter(blocks.matrices(dense).values())).weight.data[0, 0] = 1e-9
    dense.save_pretrained(tmp_path / "dense")  # that one becomes 0 does not make it a pruned model
    assert not hasattr(load(str(tmp_path / "dense"), dtype="float16").config, ledger.FIELD)
    row, column = (matrix.weight == 0).nonzero()[0].tolist()
    matrix.weight.data[row, column] = 1.0
    pruned.save_pretrained(tmp_path / "broken")
    with pytest.raises(LabkitError, match=f"{name}: 1 of {zeros[name]} zeros are zero no longer"):
        load(str(tmp_path / "broken"), dtype="float16")


def test_capped_attention_is_computed_with_its_cap(tmp_path):
    """PyTorch's fused attention, which transformers takes by default, leaves the cap of Gemma 2 out."""
    config = Gemma2Config(**SIZES, num_key_value_heads=2, attn_logit_softcapping=0.01, query_pre_attn_scalar=1, **SMALL)
    built(config).save_pretrained(tmp_path)
    by = {name: AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name) for name in ("eager", "sdpa")}
    logits = {name: model.eval()(CALIBRATION).logits for name, model in by.items()}
    assert torch.equal(load(str(tmp_path))(CALIBRATION).logits, logits["eager"])
    assert not torch.allclose(logits["eager"], logits["sdpa"], atol=1e-4)


def test_what_is_no_causal_decoder_is_refused_before_its_weights_are_read(tmp_path):
    configs = {
        "BertForMaskedLM": {"model_type": "bert"},
        "T5ForConditionalGeneration": {"model_type": "t5", "is_encoder_decoder": True},
        "LlamaModel": {"model_type": "llama"},  # no output head: it makes embeddings
    }
    for name, config in configs.items():
        (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
        with pytest.raises(LabkitError) as error:
            load(str(tmp_path))
        assert str(error.value).startswith(f"a causal decoder is needed; got '{tmp_path}, {name}'. Name a model whose")


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    (tmp_path / "modeling_mine.py").write_text("raise SystemExit('ran')")
    config = {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LabkitError) as error:
        load(str(tmp_path))
    assert error.value.rule == "code that comes with a model is not run unless you say so"
    assert error.value.remedy == f"Read modeling_mine.py, and if you trust it: load({str(tmp_path)!r}, trust_remote_code=True)."
    (tmp_path / "config.json").write_text('{"model_type": "mine"}')
    with pytest.raises(LabkitError, match="architecture is one of transformers .* of model_type 'mine'.*newer"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LabkitError, match="config.json is JSON; got .*Restore"):
        load(str(tmp_path))


def test_a_weight_that_is_not_in_the_file_is_not_drawn_at_random(tmp_path):
    model = built(FAMILIES["llama"])
    model.save_pretrained(tmp_path)
    save_file({k: v for k, v in model.state_dict().items() if "lm_head" not in k}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(LabkitError, match="every weight comes from the file, none is drawn; got .* without lm_head.weight'"):
        load(str(tmp_path))


def test_a_model_of_another_vocabulary_is_not_asked_in_labkits_tokens(tmp_path):
    built(GPT2Config(n_embd=16, n_head=1, n_layer=1, vocab_size=300)).save_pretrained(tmp_path / "other")
    study = Study("s", "?", (str(tmp_path / "other"),), abilities=("recall",), items=5)
    with pytest.raises(LabkitError, match="asked in labkit's vocabulary of 168; got .*other, which has 300'. Ask it in text"):
        study.run(tmp_path / "rows", progress=False)
    in_text = Study("s", "?", (str(tmp_path / "other"),), prompts=("recall",), items=5)
    with pytest.raises(LabkitError, match="text needs the tokenizer of the model; got .*other, which comes without one"):
        in_text.run(tmp_path / "rows", progress=False)
    assert not (tmp_path / "rows").exists()


@pytest.fixture
def of_words(tmp_path):
    """Folders of two models that read bytes, with their tokenizer beside them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    bytewise.pre_tokenizer, bytewise.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words = PreTrainedTokenizerFast(tokenizer_object=bytewise)
    config = GPT2Config(n_embd=16, n_head=1, n_layer=2, vocab_size=256, n_positions=2048, bos_token_id=0, eos_token_id=0)
    for name in ("large", "small"):
        built(config).save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    return str(tmp_path / "large")


def test_models_of_another_vocabulary_are_asked_in_words_and_judged_as_a_pair(of_words, tmp_path):
    pair = Pair(str(tmp_path / "large"), str(tmp_path / "small"), "made smaller")
    study = Study("s", "?", prompts=("reverse",), items=2, pairs=(pair,))
    rows = study.run(tmp_path / "rows", progress=False).frame()
    assert set(rows["ability"]) == {f"reverse, {template.name}" for template in TEMPLATES}
    assert set(rows["compression"]) == {"dense", "made smaller"} and set(rows["rung"]) == {"large"}
    assert (rows.groupby(["run", "ability", "metric"])["item"].nunique() == 2).all()
    assert set(judge(rows)["compression"]) == {"made smaller"}
    assert tokenizer(str(tmp_path / "large")).decode(tokenizer(str(tmp_path / "large"))("é b").input_ids) == "é b"


WAYS = tuple(
    map(
        Compression.parse,
        [
            {"prune": {"criterion": "wanda", "sparsity": 0.5}, "recover": {"method": "lora", "rank": 2, "tokens": 1024}},
            {"drop_layers": {"drop": 1}, "distill": {"tokens": 1024}},
        ],
    )
)


def test_models_of_another_vocabulary_are_compressed_and_trained_on_a_text(of_words, tmp_path, monkeypatch):
    monkeypatch.setattr(forward, "compiled", lambda module: module)
    (tmp_path / "mine.txt").write_text("the cat sat on the mat, and so did I. " * 60)
    (tmp_path / "mine.toml").write_text(
        f'''question = "?"
models = ["{of_words}"]
compress = ["{of_words}"]
prompts = ["reverse"]
items = 2
text = {{ file = "mine.txt", length = 16 }}
compression = [
    {{ prune = {{ criterion = "wanda", sparsity = 0.5 }}, recover = {{ method = "lora", rank = 2, tokens = 1024 }} }},
    {{ drop_layers = {{ drop = 1 }}, distill = {{ tokens = 1024 }} }},
]
'''
    )
    study = Study.load(tmp_path / "mine.toml")
    assert study.compressions == WAYS and study.text.file == str(tmp_path / "mine.txt")
    assert [(line.compression, line.trained_tokens) for line in foretell(study)][1:] == [(way.name, 1024) for way in WAYS]
    store = study.run(tmp_path / "rows", progress=False)
    rows, traced = store.frame(), store.provenance()
    assert (rows.groupby(["run", "ability", "metric"])["item"].nunique() == 2).all()
    assert set(judge(rows)["compression"]) == {way.name for way in WAYS}
    verbs = {row.run: [entry["verb"] for entry in row.lineage] for row in traced.itertuples()}
    assert sorted(verbs.values()) == [[], ["drop_layers", "distill"], ["prune", "recover"]]
    before = set(study.runs())
    (tmp_path / "mine.txt").write_text("another text, of which there is as much. " * 60)
    assert len(before & set(study.runs())) == 1  # the dense model was not trained on it


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "calibration and training are in labkit's vocabulary of 168 tokens, or on a text; got '.*large, which has 256'. Give a text"),
        ({"text": Text("gone.txt")}, r"a text to calibrate and train on is a file in UTF-8; got 'gone.txt \(No such file"),
        ({"compressions": (Compression.parse({"train": {"student": "16x1", "tokens": 9999}}),), "text": Text("gone.txt")},
         "a student that is a rung has labkit's vocabulary of 168 tokens; got '.*large, which has 256, and .*16x1.*'. Make the student"),
    ],
)  # fmt: skip
def test_what_a_text_is_missing_for_is_said_before_anything_is_measured(of_words, tmp_path, more, message):
    asked = {"prompts": ("reverse",), "items": 2, "compressions": WAYS}
    study = Study("s", "?", (of_words,), (of_words,), **{**asked, **more})
    with pytest.raises(LabkitError, match=message):
        study.run(tmp_path / "rows", progress=False)
    assert not (tmp_path / "rows").exists()


def test_what_a_folder_is_depends_on_its_config_and_tokenizer(tmp_path):
    Rung(16, 1).build(0).save_pretrained(tmp_path)
    plain = weights_id(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    other = weights_id(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert len({plain, other, weights_id(str(tmp_path))}) == 3


@pytest.mark.parametrize("revision", ["v1", "c" * 40])
def test_a_hub_model_is_loaded_by_a_branch_in_its_name(tmp_path, monkeypatch, revision):
    place, commit = tmp_path / "models--someone--tiny", "c" * 40
    Rung(16, 1).build(0).save_pretrained(place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load(f"someone/tiny@{revision}").config._commit_hash == commit


@pytest.mark.parametrize("content", ["{}", "[]"])
def test_a_manifest_and_a_config_that_say_nothing(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(LabkitError, match="it names no files and models"):
        zoo(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(LabkitError, match="it holds no settings"):
        model_config(str(tmp_path))
    with pytest.raises(LabkitError, match="a folder of models holds a manifest.json"):
        zoo(tmp_path / "config.json")
