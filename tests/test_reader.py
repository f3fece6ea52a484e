"""Log-likelihoods equal those of lm_eval and of one plain pass an item; what is said is the likeliest each time."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    FalconH1Config,
    FalconH1ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from labkit.errors import LabkitError
from labkit.ladder import Rung
from labkit.prompts import own_tokenizer
from labkit.reader import Reader

HERE = Path(__file__).parent
STORED = json.loads((HERE / "data" / "lm-eval.json").read_text())


def oracle():
    """The script that made the stored values, for the model and the tokenizer they are of."""
    spec = importlib.util.spec_from_file_location("oracle_harness", HERE / "oracles" / "harness.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


ORACLE = oracle()
MODEL = ORACLE.model()
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
OTHERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=168, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.3)),
    # a window shorter than the contexts, and a model whose state cannot be handed to several continuations
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(vocab_size=168, num_key_value_heads=1, sliding_window=4, **SMALL)
    ),
    "falcon_h1": lambda: FalconH1ForCausalLM(
        FalconH1Config(vocab_size=168, **{**SMALL, "head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8, "num_key_value_heads": 1})
    ),
    "mamba": lambda: MambaForCausalLM(MambaConfig(vocab_size=168, hidden_size=16, num_hidden_layers=2, state_size=4)),
}


def other(name: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OTHERS[name]()
    for parameter in model.parameters():
        parameter.data *= 3
    return model


def stored_tokenizer() -> PreTrainedTokenizerFast:
    subwords = Tokenizer.from_str(json.dumps(STORED["tokenizer"]))
    return PreTrainedTokenizerFast(tokenizer_object=subwords, unk_token="<unk>", bos_token="<s>", eos_token="<s>")


READER = Reader.of(MODEL, stored_tokenizer())


def plain(model, pairs) -> list[tuple[float, bool]]:
    """One pass an item over all of it, no cache, no batch, softmax in double precision."""
    found = []
    model.eval()
    for context, continuation in pairs:
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([[*context, *continuation]])).logits[0].double().log_softmax(-1)
        logp = logp[len(context) - 1 : -1]
        asked = torch.tensor(continuation)
        found.append((logp.gather(1, asked[:, None]).sum().item(), bool((logp.argmax(-1) == asked).all())))
    return found


def some_pairs(seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Contexts that fork into continuations of several lengths, that share examples, and that stand alone."""
    rng = np.random.default_rng(seed)
    draw = lambda size: rng.integers(2, 168, size).tolist()  # noqa: E731
    pairs = []
    for length in (3, 7, 7, 32, 33, 34):
        context, stem = draw(length), draw(2)
        pairs += [(context, draw(size)) for size in (1, 1, 3, 4)] + [(context, [*stem, 5]), (context, [*stem, 6])]
    examples = draw(20)  # questions after the same examples, some with one answer, some with several
    for length in (2, 3, 3, 4):
        question = [*examples, *draw(length)]
        pairs += [(question, draw(size)) for size in (1, 2, 3)[: length - 1]]
    lone = draw(8)
    pairs += [(lone, [9]), (lone, [11]), (draw(33), draw(3)), (draw(32), draw(1)), (draw(5), draw(1))]
    return [pairs[i] for i in rng.permutation(len(pairs))]


# --- log-likelihoods -----------------------------------------------------------------------------------------------


def test_log_likelihoods_are_those_that_lm_eval_gave():
    texts = [(context, continuation) for context, continuation, *_ in STORED["requests"]]
    values, greedy = READER.score(READER.encode(texts))
    assert STORED["source"].startswith("lm_eval 0.4")
    np.testing.assert_allclose(values, [value for *_, value, _ in STORED["requests"]], rtol=0, atol=1e-4)
    assert greedy.tolist() == [greedy for *_, greedy in STORED["requests"]]


def test_log_likelihoods_are_those_that_lm_eval_gives():
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=MODEL, tokenizer=stored_tokenizer(), batch_size=3)
    words = ORACLE.TEXT.split()
    texts = [
        (" ".join(words[i : i + size]) + tail, " " + " ".join(words[j : j + 1 + j % 3]))
        for i in range(0, 30, 5)
        for size, tail in ((3, ""), (6, " "))
        for j in range(4, 32, 7)
    ]
    theirs = lm.loglikelihood([Instance("loglikelihood", {}, text, 0) for text in texts], disable_tqdm=True)
    ours, greedy = READER.score(READER.encode(texts))
    np.testing.assert_allclose(ours, [value for value, _ in theirs], rtol=0, atol=1e-4)
    assert greedy.tolist() == [greedy for _, greedy in theirs]


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_batches_forks_and_shared_stems_equal_one_plain_pass_an_item(batch_tokens):
    values, greedy = READER.score(pairs := some_pairs(), batch_tokens)
    expected = plain(MODEL, pairs)
    np.testing.assert_allclose(values, [value for value, _ in expected], rtol=1e-5)
    assert greedy.tolist() == [greedy for _, greedy in expected]


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_too_in_whatever_mode_the_model_is(name):
    model = other(name).train()
    reader = Reader.of(model, own_tokenizer())
    assert reader.shares is (name not in ("mamba", "falcon_h1"))
    assert reader.pads is (name == "gpt2")
    values, _ = reader.score(pairs := some_pairs(1))
    assert model.training
    np.testing.assert_allclose(values, [value for value, _ in plain(model, pairs)], rtol=1e-4, atol=1e-4)


def test_the_order_of_the_pairs_changes_nothing():
    pairs = some_pairs()
    order = np.random.default_rng(3).permutation(len(pairs))
    straight, _ = READER.score(pairs)
    mixed, _ = READER.score([pairs[i] for i in order])
    np.testing.assert_allclose(mixed, straight[order], rtol=1e-5)


def test_a_context_is_read_once_for_all_of_its_continuations():
    seen = []
    hook = MODEL.model.embed_tokens.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numel()))
    try:
        READER.score([([5] * 40, [i, i + 1]) for i in range(2, 10)])
    finally:
        hook.remove()
    assert sum(seen) == 39 + 8 * 2  # but for its last token, and of each continuation all but the last


def test_the_probabilities_of_all_next_tokens_sum_to_one():
    values, _ = READER.score([([7, 8, 9], [token]) for token in range(168)])
    assert np.exp(values).sum() == pytest.approx(1, abs=1e-5)


# --- where a text is cut into tokens -------------------------------------------------------------------------------


def test_context_and_continuation_are_encoded_as_one_text():
    (context, continuation), (moved, blank) = READER.encode([("the cat", " sat"), ("the cat ", "sat")])
    whole = stored_tokenizer()("the cat sat")["input_ids"]
    assert context + continuation == moved + blank == whole
    assert context == moved == stored_tokenizer()("the cat")["input_ids"]


def test_an_empty_context_is_the_begin_of_a_text():
    ((context, continuation),) = READER.encode([("", "the cat")])
    assert context == [stored_tokenizer().bos_token_id]
    assert continuation == stored_tokenizer()("the cat")["input_ids"]


def test_a_continuation_without_tokens_is_refused():
    with pytest.raises(LabkitError, match="a continuation has tokens of its own; got .*the cat"):
        READER.encode([("the cat", "")])


def test_what_the_tokenizer_puts_in_front_is_put_there_once():
    from tokenizers.processors import TemplateProcessing

    own = stored_tokenizer()
    own.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    reader = Reader.of(MODEL, own)
    plain_, written = reader.tokens(["the cat", "<s>the cat"])
    assert plain_[0] == written[0] == 1
    assert plain_.count(1) == written.count(1) == 1


# --- generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MODEL, *map(other, ("gpt2", "mamba"))], ids=lambda model: type(model).__name__)
def test_what_is_written_is_the_likeliest_token_each_time(model):
    reader = Reader.of(model, own_tokenizer())
    prompts = ["[recall] a v7 t v14 a", "[recall] a v7 t v14 t", "[addition] 1 2"]
    said = reader.write(prompts, [5, 2, 3])
    model.eval()
    for prompt, limit, text in zip(prompts, [5, 2, 3], said, strict=True):
        tokens = own_tokenizer()(prompt)["input_ids"]
        for _ in range(limit):
            with torch.no_grad():
                tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        assert text == own_tokenizer().decode(tokens[-limit:], skip_special_tokens=True)


def test_settings_of_generation_that_come_with_a_model_are_not_followed():
    reader = Reader.of(MODEL, own_tokenizer())
    before = reader.write(["[recall] a v7"], [6])
    MODEL.generation_config.repetition_penalty = 5.0
    try:
        assert reader.write(["[recall] a v7"], [6]) == before
    finally:
        MODEL.generation_config.repetition_penalty = None


def test_writing_ends_before_a_stop_and_at_the_end_of_text():
    """A model that says the successor of each token: a b c d e …"""
    reader = Reader.of(counting(), own_tokenizer())
    assert reader.write(["a"], [4]) == ["b c d e"]
    assert reader.write(["a"], [9], stop="d") == ["b c "]
    own = own_tokenizer()
    own.eos_token = "e"
    assert Reader.of(counting(), own).write(["a", "b"], [9, 2]) == ["b c d", "c d"]


def counting():
    """GPT-2 without attention, whose head finds the token after the one it reads."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=168, n_embd=168, n_layer=1, n_head=1, tie_word_embeddings=False))
    for parameter in model.parameters():
        parameter.data.zero_()
    model.transformer.ln_f.weight.data.fill_(1)
    model.transformer.wte.weight.data = torch.eye(168)
    model.lm_head.weight.data = torch.eye(168).roll(1, dims=0)
    return model


# --- what does not fit ---------------------------------------------------------------------------------------------


def bert(kind):
    return kind(BertConfig(vocab_size=168, max_position_embeddings=64, **SMALL))


@pytest.mark.parametrize(
    ("model", "received"),
    [
        (lambda: bert(BertForMaskedLM), "BertForMaskedLM, which sees later tokens: an encoder"),
        (lambda: bert(BertModel), "BertModel, without a head over the vocabulary"),
        (lambda: T5ForConditionalGeneration(T5Config(vocab_size=168, d_model=16, d_ff=16, d_kv=8, num_layers=1,
                                                     num_heads=2)),
         "T5ForConditionalGeneration, an encoder with a decoder"),
    ],
)  # fmt: skip
def test_what_is_no_causal_language_model_is_refused(model, received):
    with pytest.raises(LabkitError) as caught:
        Reader.of(model(), own_tokenizer())
    assert caught.value.rule == "a text is continued by a causal language model"
    assert caught.value.received == received
    assert "AutoModelForCausalLM" in caught.value.remedy


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(LabkitError, match="the tokenizer of the model; got 'a model that was loaded from nowhere'"):
        Reader.of(Rung(16, 1).build())
    Rung(16, 1).build().save_pretrained(tmp_path)
    from labkit.zoo import load

    with pytest.raises(LabkitError, match="text needs the tokenizer of the model; got .*without one.*save_pretrained"):
        Reader.of(load(str(tmp_path)))


def test_a_tokenizer_beside_the_model_is_found(tmp_path):
    from labkit.zoo import load

    MODEL.save_pretrained(tmp_path)
    stored_tokenizer().save_pretrained(tmp_path)
    found = Reader.of(load(str(tmp_path)))
    assert found.encode([("the cat", " sat")]) == READER.encode([("the cat", " sat")])


def test_a_tokenizer_of_another_vocabulary_is_refused():
    with pytest.raises(LabkitError, match="one of the model's; got 'token 167, vocabulary of 100'. Use the token"):
        Reader.of(GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2)), own_tokenizer())


def test_a_tokenizer_that_ends_every_text_is_refused():
    from tokenizers.processors import TemplateProcessing

    own = own_tokenizer()
    own.eos_token = "|"
    own.backend_tokenizer.post_processor = TemplateProcessing(single="$A |", special_tokens=[("|", 1)])
    with pytest.raises(LabkitError, match="a tokenizer lets a text go on; got \"one that ends each with '|'\""):
        Reader.of(MODEL, own)


def test_a_text_longer_than_the_model_reads_is_refused():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=168, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    reader = Reader.of(model, own_tokenizer())
    reader.score([([5] * 16, [5])])
    with pytest.raises(LabkitError, match="fits into the model's 16 positions; got 'one of 17 tokens'. Ask with fewer"):
        reader.score([([5] * 16, [5, 6])])
    with pytest.raises(LabkitError, match="fits into the model's 16 positions"):
        reader.write(["a " * 12], [6])


def test_a_broken_model_is_refused():
    model = Rung(16, 1).build()
    reader = Reader.of(model, own_tokenizer())
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(LabkitError, match="logits are finite; got 'NaN or infinity'"):
        reader.score([([5], [6])])


def test_a_chat_needs_a_template():
    with pytest.raises(LabkitError, match="needs a tokenizer with a chat template; got 'none'. Leave out chat=True"):
        READER.converse(["hello"])


def test_what_ends_each_text_is_seen_though_it_is_no_end_of_text():
    from tokenizers.processors import TemplateProcessing

    own = own_tokenizer()
    own.backend_tokenizer.post_processor = TemplateProcessing(single="| $A +", special_tokens=[("|", 1), ("+", 2)])
    with pytest.raises(LabkitError, match="a tokenizer lets a text go on"):
        Reader.of(MODEL, own)
    own.backend_tokenizer.post_processor = TemplateProcessing(single="| $A", special_tokens=[("|", 1)])
    own.eos_token, own.bos_token = "|", "+"
    assert Reader.of(MODEL, own).prefix is not None  # as XGLM begins with it


def test_any_end_that_the_model_names_ends_an_answer():
    model, own = counting(), own_tokenizer()
    prompt = own.decode([20])
    free = Reader.of(model, own).write([prompt], [6])[0]
    model.generation_config.eos_token_id = [23, 30]
    assert Reader.of(model, own).write([prompt], [6])[0] == own.decode([21, 22]) != free


def test_an_alphabet_without_a_is_looked_at_too():
    from tokenizers import models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    for _ in range(20):  # a vocabulary has no order: the end itself, which may come first, shows nothing
        amino = Tokenizer(models.BPE({letter: number for number, letter in enumerate(["|", *"CDEF"])}, []))
        amino.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        amino.post_processor = TemplateProcessing(single="$A |", special_tokens=[("|", 0)])
        with pytest.raises(LabkitError, match="a tokenizer lets a text go on"):
            Reader.of(MODEL, PreTrainedTokenizerFast(tokenizer_object=amino, eos_token="|"))
