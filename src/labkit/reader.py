"""A causal model that reads and writes text: log-likelihoods of continuations, and what it says greedily."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from labkit.errors import LabkitError
from labkit.zoo import tokenizer as tokenizer_beside

CPU_BATCH_TOKENS, BATCH_TOKENS = 2_048, 16_384
"""Tokens in one forward pass: on a CPU few enough for activations to stay in its cache, elsewhere enough to fill it."""

SLACK = 1 / 16
"""Share by which a sequence may be shorter than the longest of its batch."""

Pair = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context and of what follows it, at least one of each."""

_PLAIN = (DynamicLayer, DynamicSlidingWindowLayer)  # a cache with more in it, as of hybrids, is not selected along


@dataclasses.dataclass(frozen=True)
class Reader:
    """A causal model and its tokenizer, known to fit. Made by `Reader.of`, which checks."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shares: bool  # its cache of a context can be handed to several continuations
    pads: bool  # contexts of different lengths can do so together
    short: bool  # it computes the logits of the last positions alone, if asked

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> Reader:
        """The model with the tokenizer given, or with the one that stands where the model was loaded from.

        Raises LabkitError for a model that is no causal language model (an encoder, an encoder-decoder, one without a
        head), without a tokenizer, and for one with more tokens than the model, or that puts one behind every text.
        """
        logits, cache = _probe(model)
        if tokenizer is None:
            tokenizer = _beside(model)
        rows = model.get_input_embeddings().weight.shape[0]
        # The largest id, not the count: some vocabularies have gaps.
        largest = max(tokenizer.get_vocab().values(), default=0)
        if largest >= min(rows, logits.shape[-1]):
            rule = "every token of the tokenizer is one of the model's"
            remedy = "Use the tokenizer the model was trained with."
            raise LabkitError(rule, f"token {largest}, vocabulary of {rows}", remedy)
        texts = ("a", "A", *(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)))
        some = next((text for text in texts if tokenizer(text, add_special_tokens=False)["input_ids"]), "a")
        plain, whole = (tokenizer(some, add_special_tokens=special)["input_ids"] for special in (False, True))
        if plain and whole[-len(plain) :] != plain:
            remedy = "Load it with add_eos_token=False, or without its post-processor."
            received = f"one that ends each with {tokenizer.decode(whole[-1:])!r}"
            raise LabkitError("a tokenizer lets a text go on", received, remedy)
        layers = getattr(cache, "layers", None)
        shares = isinstance(cache, DynamicCache) and all(type(layer) in _PLAIN for layer in layers)
        takes = inspect.signature(model.forward).parameters
        # What a sliding window holds is counted by place in the cache, padding included.
        pads = shares and "position_ids" in takes and all(type(layer) is DynamicLayer for layer in layers)
        return cls(model, tokenizer, shares, pads, "logits_to_keep" in takes)

    # -- text to tokens

    @property
    def prefix(self) -> int | None:
        """The token that stands for an empty context: begin of sequence, or end of text where there is none."""
        own = self.tokenizer
        return own.bos_token_id if own.bos_token_id is not None else own.eos_token_id

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, with what the tokenizer puts in front, unless the text begins with it already."""
        begin = self.tokenizer.decode([self.prefix]) if self.prefix is not None else None
        written = np.array([bool(begin) and text.startswith(begin) for text in texts], dtype=bool)
        found: list[list[int]] = [[] for _ in texts]
        for special in (True, False):
            rows = np.flatnonzero(written != special)
            if rows.size:
                encoded = self.tokenizer([texts[row] for row in rows], add_special_tokens=special)["input_ids"]
                for row, tokens in zip(rows, encoded, strict=True):
                    found[row] = tokens
        return found

    def encode(self, texts: Sequence[tuple[str, str]]) -> list[Pair]:
        """Tokens of (context, continuation), by the definition of `lm_eval` 0.4 (`TemplateLM._encode_pair`).

        Blanks at the end of a context go to its continuation, for most tokenizers keep a blank with the word after it.
        Then context and continuation are encoded as one text, and the context alone; the continuation is what the one
        has beyond the length of the other. An empty context becomes `prefix`.

        Raises LabkitError for a continuation that has no tokens of its own.
        """
        moved = [(context.rstrip(), context[len(context.rstrip()) :] + continuation) for context, continuation in texts]
        contexts = list(dict.fromkeys(context for context, _ in moved))  # one context, many choices: encoded once
        of_context = dict(zip(contexts, self.tokens(contexts), strict=True))
        pairs = []
        for (context, _), whole, text in zip(moved, self.tokens([c + t for c, t in moved]), texts, strict=True):
            before = of_context[context]
            after = whole[len(before) :]
            if not before and self.prefix is not None:
                before, after = ([self.prefix], after) if after[:1] != [self.prefix] else (after[:1], after[1:])
            if not before or not after:
                which = "continuation" if before else "context"
                remedy = "Give one that the tokenizer does not merge with its neighbour, or that is not empty."
                raise LabkitError(f"a {which} has tokens of its own", text, remedy)
            pairs.append((before, after))
        return pairs

    def converse(self, turns: Sequence[str]) -> str:
        """A conversation as the tokenizer's chat template writes it: user and assistant in turn, the user last."""
        if not self.tokenizer.chat_template:
            raise LabkitError("a chat needs a tokenizer with a chat template", "none", "Leave out chat=True.")
        messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    # -- tokens to scores

    def score(
        self, pairs: Sequence[Pair], batch_tokens: int | None = None, each: Callable[[int], None] = lambda _: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """ln p(continuation | context) in nats, and whether each of its tokens is the likeliest: (pairs,) each.

        What texts begin with alike (a context its continuations, or examples the questions after them) is read once for
        all of them, where the model's cache can be shared; continuations that differ in the last token alone in any
        case. Batches hold sequences of about one length, padded where no token that counts can see it, so a value does
        not depend on an item's neighbours. `each` is told how many pairs a batch had.

        Raises LabkitError for a pair longer than the model reads (nothing is cut off), and for logits not finite.
        """
        self._fits(max((len(context) + len(continuation) - 1 for context, continuation in pairs), default=0))
        values, greedy = np.empty(len(pairs)), np.empty(len(pairs), dtype=bool)
        limit = batch_tokens or self._batch_tokens
        with _still(self.model):
            for numbers, prefixes in self._batches(pairs, limit):
                values[numbers], greedy[numbers] = self._scored([pairs[number] for number in numbers], prefixes)
                each(len(numbers))
        return values, greedy

    def write(
        self, prompts: Sequence[str], limits: Sequence[int], stop: str | None = None, batch_tokens: int | None = None
    ) -> list[str]:
        """What the model says after each prompt, taking the likeliest token each time, up to `stop` (left out).

        At most `limits` tokens, ending with an end of text, the tokenizer's or one that the model's
        `generation_config` names; penalties and sampling are not followed. Blanks before the first word are no `stop`.

        Raises LabkitError for a prompt that leaves no room to answer.
        """
        tokens = self.tokens(prompts)
        self._fits(max((len(t) + n - 1 for t, n in zip(tokens, limits, strict=True)), default=0))
        said: list[str] = [""] * len(prompts)
        with _still(self.model):
            sizes = [(len(t), len(t)) for t in tokens]
            for rows in _alike(sizes, batch_tokens or self._batch_tokens, slack=0):
                batch = self._tensor([tokens[row] for row in rows])
                for row, text in zip(rows, self._greedy(batch, [limits[row] for row in rows], stop), strict=True):
                    said[row] = text
        return said

    # -- inside

    @property
    def _batch_tokens(self) -> int:
        return CPU_BATCH_TOKENS if self.model.device.type == "cpu" else BATCH_TOKENS

    def _fits(self, length: int) -> None:
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and length > longest:
            remedy = "Ask with fewer shots, or of a model with a longer context."
            raise LabkitError(f"a text fits into the model's {longest} positions", f"one of {length} tokens", remedy)

    def _tensor(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(rows, longest) padded on the right, where a causal model does not see it."""
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self.model.device)

    def _batches(self, pairs: Sequence[Pair], limit: int) -> Iterator[tuple[list[int], list[int]]]:
        """Numbers of the pairs of one batch, and for each how many first tokens it shares with its family, or 0."""
        stems: dict[tuple, list[int]] = {}  # what has to be read: all but the last token
        for number, (context, continuation) in enumerate(pairs):
            stems.setdefault((*context, *continuation[:-1]), []).append(number)
        families: list[tuple[int, list[tuple]]] = []
        for stem in sorted(stems):
            begin = min(len(pairs[number][0]) for number in stems[stem]) - 1  # the first place that is scored
            if self.shares and families:
                prefix, members = families[-1]
                common = min(prefix, begin, _alike_from_the_start(members[-1], stem))
                longest = max(len(stem), *map(len, members))
                saves = len(members) * common > (len(members) - 1) * prefix and 2 * common >= longest
                if saves and _cost(common, (len(members) + 1) * longest) <= limit:
                    families[-1] = common, [*members, stem]
                    continue
            families.append((begin, [stem]))
        alone = [members[0] for _, members in families if len(members) == 1]
        for rows in _alike([(len(stem), len(stem)) for stem in alone], limit, SLACK):
            numbers = [number for row in rows for number in stems[alone[row]]]
            yield numbers, [0] * len(numbers)
        kin = [family for family in families if len(family[1]) > 1]
        sizes = [(prefix, _cost(prefix, sum(map(len, members)))) for prefix, members in kin]
        for rows in _alike(sizes, limit, SLACK if self.pads else 0):
            found = [(number, kin[row][0]) for row in rows for stem in kin[row][1] for number in stems[stem]]
            yield [number for number, _ in found], [prefix for _, prefix in found]

    def _logits(self, tokens: Tensor, keep: int, **options: object) -> tuple[Tensor, object]:
        """Logits (rows, keep, vocab) of the last positions, and the cache."""
        asked = {"logits_to_keep": keep} if self.short else {}
        out = self.model(input_ids=tokens, **asked, **options)
        logits = out.logits[:, -keep:].float()
        if not torch.isfinite(logits).all():
            raise LabkitError("logits are finite", "NaN or infinity", "Check the weights and their dtype.")
        return logits, getattr(out, "past_key_values", None)

    def _scored(self, batch: Sequence[Pair], prefixes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """One pass over each prefix, if there are any, then one over what follows it in each different text."""
        shared: dict[tuple, int] = {}
        stems: dict[tuple, int] = {}
        rows = torch.tensor([stems.setdefault((*a, *b[:-1]), len(stems)) for a, b in batch])
        cut = dict(zip(rows.tolist(), prefixes, strict=True))  # of each stem
        after = self._tensor([stem[cut[row]:] for stem, row in stems.items()])
        past: dict[str, object] = {"use_cache": False}
        if prefixes[0]:
            which = [shared.setdefault(stem[: cut[row]], len(shared)) for stem, row in stems.items()]
            past = self._past(self._tensor(list(shared)), torch.tensor(which), torch.tensor(list(cut.values())), after)
        padded = self._tensor([continuation for _, continuation in batch])
        asked = torch.arange(padded.shape[1]) < torch.tensor([len(b) for _, b in batch])[:, None]
        begins = torch.tensor([len(a) - 1 - prefix for (a, _), prefix in zip(batch, prefixes, strict=True)])
        first = int(begins.min())
        logits, _ = self._logits(after, after.shape[1] - first, **past)
        place = (begins[:, None] - first + torch.arange(padded.shape[1])).clamp_max(logits.shape[1] - 1)
        return _sums(logits, rows, place, padded, asked)

    def _past(self, tokens: Tensor, which: Tensor, lengths: Tensor, after: Tensor) -> dict[str, object]:
        """What a pass over `after` needs to follow row `which` of the prefixes (rows, longest), of `lengths` tokens."""
        _, cache = self._logits(tokens, 1, use_cache=True)
        cache.batch_select_indices(which.to(tokens.device))
        past: dict[str, object] = {"past_key_values": cache, "use_cache": True}
        if int(lengths.min()) < tokens.shape[1]:  # the padding of shorter prefixes must not be seen
            seen = torch.arange(tokens.shape[1]) < lengths[:, None]
            mask = torch.cat([seen, torch.ones(after.shape, dtype=torch.bool)], dim=1).long()
            place = lengths[:, None] + torch.arange(after.shape[1])
            past |= {"attention_mask": mask.to(tokens.device), "position_ids": place.to(tokens.device)}
        return past

    def _greedy(self, tokens: Tensor, limits: Sequence[int], stop: str | None) -> list[str]:
        """Texts after a batch (rows, length) of prompts of one length."""
        ends = {self.tokenizer.eos_token_id, *np.atleast_1d(getattr(self.model.generation_config, "eos_token_id", None))}
        new: list[list[int]] = [[] for _ in limits]
        texts, open_ = [""] * len(limits), [limit > 0 for limit in limits]
        given, cache = tokens, None
        while any(open_):
            past = {"past_key_values": cache} if cache is not None else {}
            logits, cache = self._logits(given, 1, use_cache=self.shares, **past)
            chosen = logits[:, -1].argmax(-1)
            for row, token in enumerate(chosen.tolist()):
                if not open_[row]:
                    continue
                if token not in ends:
                    new[row].append(token)
                    texts[row] = self.tokenizer.decode(new[row], skip_special_tokens=True)
                stopped = stop is not None and stop in texts[row].lstrip()
                open_[row] = token not in ends and not stopped and len(new[row]) < limits[row]
            given = chosen[:, None] if self.shares else torch.cat([given, chosen[:, None]], dim=1)
        return [text.lstrip().split(stop)[0] if stop else text for text in texts]


def _sums(
    logits: Tensor, rows: Tensor, place: Tensor, tokens: Tensor, asked: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of ln p over the tokens asked for, and whether all are the likeliest: (n,) each.

    logits (rows, time, vocab); `rows` (n,) and `place` (n, tokens) say where those of `tokens` (n, tokens) stand.
    """
    rows, place, asked = (index.to(logits.device) for index in (rows[:, None], place, asked))
    # ln p = logit − logsumexp: no second tensor as large as the logits
    picked = logits[rows, place, tokens] - logits.logsumexp(-1)[rows, place]
    right = (logits.argmax(-1)[rows, place] == tokens) | ~asked
    return torch.where(asked, picked, 0).double().sum(-1).cpu().numpy(), right.all(-1).cpu().numpy()


def _cost(prefix: int, length: int) -> int:
    """Tokens a family counts for: each member holds a copy of the prefix's cache, which takes memory, less time."""
    return prefix + length // 2


def _alike_from_the_start(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens two rows have in common."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _alike(sizes: Sequence[tuple[int, int]], limit: int, slack: float) -> Iterator[list[int]]:
    """Numbers of (length, cost) of about one length, longest first: at most `limit` together but at least one.

    In a batch the shortest is shorter than the longest by a share of `slack` at most.
    """
    rows, total = [], 0
    for row in sorted(range(len(sizes)), key=lambda row: sizes[row], reverse=True):
        length, cost = sizes[row]
        if rows and (length < (1 - slack) * sizes[rows[0]][0] or total + cost > limit):
            yield rows
            rows, total = [], 0
        rows.append(row)
        total += cost
    if rows:
        yield rows


@contextlib.contextmanager
def _still(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout and gradients; the model's mode comes back."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _probe(model: PreTrainedModel) -> tuple[Tensor, object]:
    """Logits and cache of two short rows that differ in the last token: before it, a causal model must not."""
    rule = "a text is continued by a causal language model"
    remedy = "Load it with labkit.load, or as AutoModelForCausalLM of a decoder."
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise LabkitError(rule, f"{kind}, an encoder with a decoder", remedy)
    with _still(model):
        out = model(input_ids=torch.tensor([[2, 3, 4, 5], [2, 3, 4, 6]], device=model.device))
    logits = getattr(out, "logits", None)
    if logits is None or logits.dim() != 3:
        raise LabkitError(rule, f"{kind}, without a head over the vocabulary", remedy)
    change = (logits[0] - logits[1]).abs().amax(-1).float()
    if change[:-1].max() > 1e-3 * change[-1]:  # of a causal model it is 0
        raise LabkitError(rule, f"{kind}, which sees later tokens: an encoder", remedy)
    return logits, getattr(out, "past_key_values", None)


def _beside(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    if not model.name_or_path:
        remedy = "Give tokenizer=…, or load the model from a folder that holds both."
        raise LabkitError("text needs the tokenizer of the model", "a model that was loaded from nowhere", remedy)
    return tokenizer_beside(model.name_or_path)
