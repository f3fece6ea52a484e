"""Finding a model's decoder blocks and the matrices in them that pruning may touch; what calibration tokens must be."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from labkit.errors import LabkitError, warn, whole

MAKE_FINITE = "Check the weights, and use bfloat16 or float32 if they are float16."
"""What to do about a NaN or an infinity."""

FEW_TOKENS = 128
"""Fewer calibration tokens than these are warned of: a norm over as many is known to 6 %, of inputs like Gaussian ones."""

FUSED = ("gate_up_proj", "down_proj")
"""The matrices of fused experts, in the order in which they are used."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A matrix that pruning may touch, wherever and however its module stores it.

    Attributes
    ----------
    name: the module's, e.g. ``"model.layers.0.mlp.down_proj"``; of fused experts that of the stored tensor and the
        number of the expert, e.g. ``"model.layers.0.mlp.experts.down_proj.3"``.
    key: name of the stored tensor in the model's state dict. Several experts share one.
    module: it is called with the inputs. parameter: its attribute that holds the tensor.
    expert: which of fused experts, or None.
    """

    name: str
    key: str
    module: nn.Module
    parameter: str
    expert: int | None = None

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs), a view of the stored tensor: writing to it changes the model."""
        return self.view(getattr(self.module, self.parameter).detach())

    def view(self, stored: Tensor) -> Tensor:
        """(outputs, inputs) of a tensor of the form in which this matrix is stored, e.g. its gradient."""
        if self.expert is not None:
            stored = stored[self.expert]
        turned = isinstance(self.module, Conv1D) or (self.expert is not None and self.module.is_transposed)
        return stored.T if turned else stored


def check_model(model: PreTrainedModel) -> None:
    """Raise LabkitError for what is no model of transformers: a name of one that is not loaded, a module of torch."""
    if not hasattr(model, "get_decoder"):
        received = model if isinstance(model, str) else type(model).__name__
        raise LabkitError("a model is one of transformers", received, "Load it first, e.g. by labkit.load(name).")


def check_itself(model: PreTrainedModel) -> None:
    """Raise LabkitError for what is no model of transformers, one that is compiled, and one that is offloaded."""
    check_model(model)
    for name, module in model.named_modules():  # other names, and code that does not look at hooks
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise LabkitError("a model is given before it is compiled", name or type(module).__name__, "Compile it afterwards.")
    check_present(model.named_parameters())


def check_present(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise LabkitError, with its name, for a tensor of a model that is elsewhere (offloaded)."""
    if absent := next((name for name, tensor in tensors if tensor.is_meta), None):
        received = f"{absent} without its numbers, as of a model that is offloaded"
        remedy = "Load the model without device_map, into the CPU's memory; pruning takes Options(device='cuda')."
        raise LabkitError("the weights of a model are in memory", received, remedy)


def check_device(device: torch.device | str | None) -> None:
    """Raise LabkitError unless PyTorch can compute on the device here; None is where the model is."""
    try:
        torch.empty(0, device=device).cpu()  # takes no memory, and is refused of "meta"
    except (RuntimeError, AssertionError, TypeError) as error:
        remedy = 'Leave it out, or say "cpu", or "cuda" where there is a GPU.'
        raise LabkitError("a device is one that PyTorch can compute on here", str(device), remedy) from error


def check_seed(seed: int) -> int:
    """The seed as an int of Python. Raises LabkitError unless it is a whole number of 64 bits."""
    if not -(2**63) <= (number := whole("a seed", seed, 0)) < 2**64:
        raise LabkitError("a seed has 64 bits", seed, "Give e.g. 0.")
    return number


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU, for a seed to mean the same on every device. Raises LabkitError as `check_seed` does."""
    return torch.Generator().manual_seed(check_seed(seed))


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout meanwhile."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def follow_modes(new: PreTrainedModel, model: PreTrainedModel) -> None:
    """Set every module of a new model to training or evaluation, as the one of that name in the model, or as that."""
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in new.named_modules():
        module.training = modes.get(name, model.training)


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder blocks: the decoder's outermost `ModuleList` with one entry per layer of the config.

    Raises LabkitError if there is none, or others beside it: attention in one and feed-forward networks in another.
    """
    check_model(model)
    layers = model.config.get_text_config().num_hidden_layers
    inside = {m for m in model.get_decoder().modules() if isinstance(m, nn.ModuleList) and len(m) == layers}
    lists = {n: m for n, m in model.named_modules() if m in inside and next(m.parameters(), None) is not None}
    name = next(iter(lists), None)
    outer = [other for other in lists if name and other.rpartition(".")[0] == name.rpartition(".")[0]]
    if len(outer) != 1:
        raise LabkitError(
            "a decoder keeps its blocks in one torch.nn.ModuleList",
            f"{type(model).__name__} with {', '.join(outer) or f'no list of {layers} blocks'}",
            "Use a causal language model of transformers.",
        )
    return name, lists[name]


def matrices(model: PreTrainedModel) -> dict[str, Matrix]:
    """Name -> matrix, for every matrix inside the decoder blocks, in order. What pruning may touch.

    That is: `torch.nn.Linear`, GPT-2's `Conv1D`, and each expert of fused experts. Embeddings and the output head stand
    outside the blocks. The router of a mixture of experts is a matrix too and **stays dense**, as in the literature: it
    is tiny, and decides who sees a token. So does what is no matrix: norms, biases, and the few taps for each channel
    of a depthwise convolution. Raises LabkitError, with name, class and reason, if a block holds a matrix in another
    form: leaving it dense silently would make the sparsity asked for a wrong number. And so if there is none.
    """
    prefix, blocks = decoder_blocks(model)
    found = {
        name: matrix
        for number, block in enumerate(blocks)
        for name, matrix in block_matrices(f"{prefix}.{number}", block).items()
    }
    if not found:
        raise _unsupported(prefix, blocks, "there is no matrix in it")
    return found


def block_matrices(prefix: str, block: nn.Module) -> dict[str, Matrix]:
    """`matrices` of one block, whose name is ``prefix``."""
    found, routers = {}, _routers(block)
    for name, module in block.named_modules(prefix=prefix):
        if module in routers:
            continue
        if is_fused(module):
            for parameter in FUSED:
                key = f"{name}.{parameter}"
                experts = range(len(getattr(module, parameter)))
                found |= {f"{key}.{e}": Matrix(f"{key}.{e}", key, module, parameter, e) for e in experts}
        elif isinstance(module, nn.Linear | Conv1D):
            found[name] = Matrix(name, f"{name}.weight", module, "weight")
        elif _is_quantised(module):
            raise _unsupported(name, module, "it is quantised")
        elif _holds_matrices(module):
            raise _unsupported(name, module, "its matrices are stored in a form whose inputs are not known")
    for name, matrix in found.items():
        if matrix.weight.dtype not in DTYPES:
            raise _unsupported(name, matrix.module, f"its weights are {matrix.weight.dtype}, not floating point")
    return found


def is_fused(module: nn.Module) -> bool:
    """Whether these are fused experts of transformers with gates, each matrix (experts, outputs, inputs), or
    (experts, inputs, outputs) where they say ``is_transposed``; with biases or without.
    """
    parameters = dict(module.named_parameters(recurse=False))
    weights = [parameters.pop(name, None) for name in FUSED]
    return (
        all(weight is not None and weight.ndim == 3 for weight in weights)
        and parameters.keys() <= {f"{name}_bias" for name in FUSED}
        and hasattr(module, "is_transposed")
        and hasattr(module, "_apply_gate")
    )


def _holds_matrices(module: nn.Module) -> bool:
    """Whether a parameter of the module itself takes more than one input to more than one output, or is packed."""
    depthwise = isinstance(module, nn.Conv1d) and module.groups == module.in_channels
    own = [p for p in module.parameters(recurse=False) if p.ndim > 1]
    return not depthwise and any(sum(n > 1 for n in p.shape) > 1 or p.dtype not in DTYPES for p in own)


def _is_quantised(module: nn.Module) -> bool:
    """Whether it is one of PyTorch's own, whose weights are no parameters; some are only where one could quantise."""
    kind = type(module)
    return ".quantized." in f"{kind.__module__}." and kind.__name__ not in ("FloatFunctional", "FXFloatFunctional")


def _routers(block: nn.Module) -> set[nn.Module]:
    """Modules that stand beside fused experts and hold one row for each of them."""
    found = set()
    for parent in block.modules():
        children = list(parent.children())
        for experts in filter(is_fused, children):
            rows = len(experts.down_proj)
            found |= {c for c in children if getattr(c, "weight", None) is not None and len(c.weight) == rows}
    return found


def _unsupported(name: str, module: nn.Module, why: str) -> LabkitError:
    return LabkitError(
        "only matrices in torch.nn.Linear, Conv1D or fused experts can be pruned",
        f"{name}, a {type(module).__name__}: {why}",
        "Use an architecture whose blocks are made of these, in float32, bfloat16 or float16.",
    )


def sparsity(model: PreTrainedModel) -> float:
    """Fraction of zeros in the prunable matrices, 0..1. Raises LabkitError if they are offloaded."""
    found = matrices(model)
    check_present((matrix.key, matrix.weight) for matrix in found.values())
    weights = [matrix.weight for matrix in found.values()]
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def check_calibration(model: PreTrainedModel, calibration: Tensor | None, purpose: str) -> Tensor:
    """The tokens, on the model's device. Raises LabkitError unless int64 (sequences, time) of its vocabulary, unpadded,
    and no longer than the model's context; and for a model that reads something else. Warns of fewer than `FEW_TOKENS`.

    The config's ``pad_token_id`` counts as padding. Where texts begin or end with it, too, more of them in a row do than
    stand between two texts: one, or, if texts both begin and end with it as far as the config tells, two. Where no
    padding token is named, as many of a token that ends texts do, at either end of a sequence.
    """
    remedy = "Give int64 tokens (sequences, time) from the model's own vocabulary, never padded."
    if calibration is None:
        raise LabkitError(f"{purpose} needs calibration tokens", calibration, remedy)
    if (vocabulary := _vocabulary(model)) is None:
        rule = f"{purpose} needs a model that reads tokens and nothing else"
        raise LabkitError(rule, type(model).__name__, "Use a causal language model of transformers.")
    if not isinstance(calibration, Tensor) or calibration.is_meta or calibration.layout != torch.strided:
        dense = isinstance(calibration, Tensor)
        received = f"{calibration.layout} on {calibration.device}" if dense else type(calibration).__name__
        raise LabkitError("calibration tokens are a torch.Tensor", received, remedy)
    if calibration.dtype != torch.int64 or calibration.ndim != 2 or calibration.numel() == 0:
        received = f"{calibration.dtype} {tuple(calibration.shape)}"
        raise LabkitError("calibration tokens are int64 with shape (sequences, time)", received, remedy)
    low, high = int(calibration.min()), int(calibration.max())
    if low < 0 or high >= vocabulary:
        rule = f"calibration tokens lie in the vocabulary, 0..{vocabulary - 1}"
        raise LabkitError(rule, f"tokens {low}..{high}", remedy)
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and calibration.shape[1] > longest:
        rule = f"calibration sequences are no longer than the model's context, {longest} tokens"
        raise LabkitError(rule, f"{calibration.shape[1]} tokens", "Cut them into shorter sequences.")
    for token, padded in _padding(config, calibration):
        if rows := int(padded.any(1).sum()):
            received = f"the padding token {token} in {rows} of {len(calibration)} sequences"
            raise LabkitError("calibration tokens are never padded", received, remedy)
    if calibration.numel() < FEW_TOKENS:
        received = f"{calibration.numel()} calibration tokens for {purpose}"
        warn(f"{received}: what so few tell is chance; give {FEW_TOKENS} or more, better thousands")
    return calibration.to(model.device)


def _vocabulary(model: PreTrainedModel) -> int | None:
    """How many tokens there are, None if the model reads something else, or something besides."""
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:  # of transformers, for models that embed several kinds of input
        return None
    weight = getattr(embedding, "weight", None)  # of pictures there is none, or one with more dimensions
    looks_up = isinstance(weight, Tensor) and weight.ndim == 2
    return len(weight) if looks_up and not getattr(model.config, "is_encoder_decoder", False) else None


def _padding(config: PreTrainedConfig, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each token that may be padding, and where it is, (sequences, ...): see `check_calibration`."""
    named = [getattr(config, name, None) for name in ("bos_token_id", "eos_token_id")]
    starts, stops = ({*token} if isinstance(token, list) else {token} - {None} for token in named)

    def runs(token: int) -> Tensor:
        """Where more of them stand in a row than between two texts, (sequences, places)."""
        between = (token in starts or not starts) + (token in stops or not stops) if token in starts | stops else 0
        at = tokens == token
        return at.unfold(1, between + 1, 1).all(-1) if at.shape[1] > between else at[:, :0]

    if (pad := getattr(config, "pad_token_id", None)) is not None:
        yield pad, runs(pad)
    else:
        for token in stops:
            found = runs(token)
            yield token, torch.cat([found[:, :1], found[:, -1:]], 1)


def finite(values: Tensor) -> bool:
    """Whether there is no NaN and no infinity: a NaN is both lowest and highest. No tensor of its size is made."""
    return bool(torch.stack(torch.aminmax(values)).isfinite().all())


def check_finite(hidden: Tensor, block: str) -> None:
    """Raise LabkitError, with the block's name, if what comes out of it is not finite."""
    if not finite(hidden):
        raise LabkitError(
            "calibration activations are finite",
            f"NaN or infinity after block {block}",
            MAKE_FINITE,
        )
