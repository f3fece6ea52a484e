"""Every decoder that transformers knows, small: it is pruned right and shortened right, or refused in words."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from labkit.errors import LabkitError
from labkit.pruning import blocks, prune, surgery

SIZES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 4),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "expert_num"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 3),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "vocab_size", "vocab_size_per_layer_input"), 64),
    **dict.fromkeys(("head_dim", "kv_channels", "qk_nope_head_dim", "v_head_dim", "sliding_window"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input", "state_size", "mamba_n_heads", "mamba_d_head", "mamba_d_state"), 8),
    **dict.fromkeys(("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("num_key_value_heads", "mamba_expand"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "mamba_n_groups"), 1),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    **dict.fromkeys(("depth", "num_kv_shared_layers"), 0),
    **dict.fromkeys(("image_size", "patch_size"), 14),
    "is_decoder": True,
}
"""Field of a config, where it has it -> value: what most architectures can be built with."""

CHANGES = (
    {},
    {"num_experts_per_tok": 2},
    {"head_dim": ...},
    {"head_dim": ..., "num_key_value_heads": 4},
    {"head_dim": 16, "v_head_dim": ...},
    {"bos_token_id": ..., "eos_token_id": ..., "pad_token_id": ...},
)
"""What is tried one after another where a model does not come about; ... is the config's own value."""

RIGHT = {
    "afmoe", "apertus", "arcee", "axk1", "axk2", "bamba", "bert", "bert-generation", "biogpt", "bitnet", "bloom",
    "camembert", "codegen", "cohere", "cohere2", "cohere2_moe", "ctrl", "cwm", "data2vec-text", "deepseek_v2",
    "deepseek_v3", "deepseek_v32", "doge", "dots1", "electra", "ernie", "ernie4_5", "ernie4_5_moe", "exaone4",
    "exaone_moe", "falcon", "flex_olmo", "fuyu", "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "glm4",
    "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "got_ocr2", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox",
    "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granite_swa", "granitemoe", "granitemoe_swa",
    "granitemoehybrid", "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax",
    "jais2", "laguna", "lfm2", "llama", "megatron-bert", "mellum", "mimo_v2_flash", "minimax", "minimax_m2",
    "minimax_m3_vl_text", "ministral", "ministral3", "mistral", "mixtral", "moshi", "mpt", "nanochat", "nemotron",
    "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "openai-gpt", "opt", "persimmon", "phi", "phi3", "phimoe",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe",
    "qwen3_next", "rembert", "roberta", "roberta-prelayernorm", "roformer", "seed_oss", "smollm3", "solar_open",
    "stablelm", "starcoder2", "vaultgemma", "xglm", "xlm-roberta", "xlm-roberta-xl", "youtu",
}  # fmt: skip
"""Those that are pruned and shortened, and must be: of transformers 5.17, as far as it has them."""

TOKENS = torch.randint(3, 64, (8, 24), generator=torch.Generator().manual_seed(0))


def small(model_type: str) -> PreTrainedModel:
    """A random model of the architecture. Skips the test where there is none so small."""
    kind = CONFIG_MAPPING[model_type]
    reasons = []
    for changes in CHANGES:
        try:
            return _built(kind(**_fitted(kind(), SIZES | changes)))
        except Exception as error:  # of whatever kind
            reasons.append(f"{type(error).__name__}: {error}")
    if model_type in RIGHT:
        pytest.fail("; ".join(reasons))
    pytest.skip(f"does not come about so small: {reasons[0]}")


def _fitted(config: PreTrainedConfig, sizes: dict[str, object]) -> dict[str, object]:
    """The sizes that a config has fields for, and its parts."""
    fitted = {field: value for field, value in sizes.items() if value is not ... and hasattr(config, field)}
    parts = {name: part for name, part in vars(config).items() if isinstance(part, PreTrainedConfig)}
    return fitted | {name: {**_fitted(part, sizes), "model_type": part.model_type} for name, part in parts.items()}


def _built(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    assert size < 3_000_000, "not that small"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # some matrices begin as zeros, and a bias that is zero hides mistakes
                parameter.normal_(std=0.01)
    logits(model)
    return model


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


def refused(model_type: str, error: LabkitError) -> None:
    """What a refusal must be: of a model that is not among those that work, with a reason."""
    assert model_type not in RIGHT
    assert "got" in str(error)


@pytest.fixture(params=sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


class Products(TorchFunctionMode):
    """Inside the with the inputs of every matrix are kept, by who is multiplied with it."""

    INPUTS = {functional.linear: 0, torch.matmul: 0, torch.Tensor.matmul: 0, torch.addmm: 1}
    """Function -> number of the argument that holds the inputs; the next one is the matrix."""

    def __init__(self, matrices: dict[str, blocks.Matrix]) -> None:
        super().__init__()
        self.names = {matrix.weight.data_ptr(): name for name, matrix in matrices.items()}
        self.inputs: dict[str, list[torch.Tensor]] = {name: [] for name in matrices}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if (at := self.INPUTS.get(function)) is not None and (name := self.names.get(args[at + 1].data_ptr())):
            self.inputs[name].append(args[at].detach().double().flatten(0, -2))
        return function(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore")
def test_what_wanda_drops_is_what_brute_force_drops(model_type):
    model = small(model_type)
    try:
        pruned = blocks.matrices(prune(model, "wanda", 0.5, calibration=TOKENS))
    except LabkitError as error:
        refused(model_type, error)
        return
    model.set_experts_implementation("eager")  # one product after another
    prefix, layers = blocks.decoder_blocks(model)
    for number, block in enumerate(layers):
        with Products(blocks.block_matrices(f"{prefix}.{number}", block)) as products:
            logits(model)
        for name, inputs in products.inputs.items():
            weight = blocks.matrices(model)[name].weight
            score = weight.abs() * torch.cat(inputs).norm(dim=0)
            count = score.shape[1] - score.shape[1] // 2
            stays = pruned[name].weight != 0
            assert (stays.sum(1) == count).all(), name
            torch.testing.assert_close((score * stays).sum(1), score.topk(count).values.sum(1), rtol=1e-6, atol=0)
            weight.copy_(pruned[name].weight)  # what the next block is calibrated on


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_fewer_layers_is_the_one_without_the_others_and_comes_back_from_disk(model_type, tmp_path):
    model, kept = small(model_type), (1, 3)
    short = copy.deepcopy(model)
    try:
        surgery.keep_layers(short, kept)
    except LabkitError as error:
        refused(model_type, error)
        return
    for number, block in enumerate(blocks.decoder_blocks(model)[1]):
        if number not in kept:  # independent: a block is also gone if it hands on its input
            block.register_forward_hook(hands_on, with_kwargs=True)
    torch.testing.assert_close(logits(short), logits(model))
    short.save_pretrained(tmp_path)
    loaded = type(short).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(short))


def hands_on(module, args, kwargs, output):
    before = args[0] if args else kwargs["hidden_states"]
    return before if isinstance(output, torch.Tensor) else (before, *output[1:])
