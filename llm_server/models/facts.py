"""What a model's header says about it: the facts people ask for, and those its memory follows from.

From the header alone. Values of a header are claims: each is checked for its type and its size
before it is used.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_server.gguf.header import Header, InvalidGguf, Omitted, Tensor, Value
from llm_server.gguf.types import FILE_TYPES
from llm_server.models.recommended import recommended_sampling

MAX_DIM = 1 << 31
"""Greatest number a hyper-parameter may be; llama.cpp has them in 32 bits."""
MAX_LAYERS = 1024
"""llama.cpp's LLAMA_MAX_LAYERS is below this."""

_POOLING = {1: "mean", 2: "cls", 3: "last", 4: "rank"}
"""enum llama_pooling_type (llama.h)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the memory of a model depends on besides how it is loaded; see `memory.py`."""

    layer_bytes: tuple[int, ...]
    """Weights of each layer."""
    other_bytes: int
    """All other weights: embeddings and what stands behind the last layer."""
    k_elements: int
    """Elements of keys in one cell, over all layers."""
    v_elements: int
    """Elements of values in one cell, over all layers; 0 where they are part of the keys."""
    key_lengths: tuple[int, int]
    """Elements of one head's key, also in layers with a sliding window; 0 without attention."""
    value_lengths: tuple[int, int]
    """Elements of one head's value, also in layers with a sliding window; 0 without attention."""
    state_elements: int
    """Elements of one sequence's recurrent state, over all layers; 0 without one."""
    is_encoder: bool
    """Whether tokens see those behind them too: a whole text at once, and no cells."""
    n_masks: int
    """Attention masks of a batch: one more where some layers have a sliding window."""
    n_embd: int
    n_head: int
    n_state: int
    """Width of a recurrent layer between its projections, several times; 0 without one."""
    n_ff: int
    """Width between the projections of a feed-forward layer, of all experts a token uses."""
    gated: bool
    """Whether there are two such projections, one of which gates the other."""
    n_routed: int
    """Experts a token uses; 1 without experts."""
    n_vocab: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What a header says. Nothing in it has been loaded, so none of it is proven."""

    architecture: str
    name: str | None
    n_params: int
    quantization: str
    n_ctx_train: int
    max_n_ctx: int
    """The longest context it can have at all: the positions whose vectors it has learnt, `MAX_DIM`
    where it computes them."""
    template_sha256: str | None
    """Of the chat template's UTF-8 text; None for a model without one."""
    pooling: str | None
    """How an embedding model folds its tokens into one vector, `rank` for a reranker; None for
    others."""
    classifies: bool
    """Whether it ends in a classifier, whose first output is a reranker's score."""
    shape: Shape
    rope: Mapping[str, float | str]
    """RoPE as the model has it, by the names of `LoadConfig`, as far as that is known."""
    sampling: Mapping[str, float]
    """What the file recommends, by the names of `Sampling`."""

    @property
    def tensor_bytes(self) -> int:
        """All weights."""
        return sum(self.shape.layer_bytes) + self.shape.other_bytes


def facts_of(headers: Sequence[Header]) -> Facts:
    """The facts of a model of these parts, the first of which has the metadata.

    Raises:
        InvalidGguf: the header lacks what every model has, or says what no model can be.
    """
    values = _Values(headers[0].metadata)
    tensors = [tensor for header in headers for tensor in header.tensors]
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise InvalidGguf("its parts do not belong together")
    declared = values.whole("split.tensors.count", default=len(tensors), bare=True)
    if declared != len(tensors):
        raise InvalidGguf("parts of it are missing, or do not belong together")
    template = values.text("tokenizer.chat_template")
    return Facts(
        architecture=values.architecture,
        name=values.text("general.name"),
        n_params=sum(tensor.n_elements for tensor in tensors),
        quantization=_quantization(values, tensors),
        n_ctx_train=values.whole("context_length"),
        max_n_ctx=_max_n_ctx(values, tensors),
        template_sha256=hashlib.sha256(template.encode()).hexdigest() if template else None,
        pooling=_pooling(values),
        classifies=_classifies(values, tensors),
        shape=_shape(values, tensors),
        rope=_rope(values),
        sampling=recommended_sampling(values.metadata),
    )


def _max_n_ctx(values: _Values, tensors: Sequence[Tensor]) -> int:
    """llama.cpp ends the process at a position without a vector (`ggml_get_rows`)."""
    learnt = any(tensor.name == "position_embd.weight" for tensor in tensors)
    return values.whole("context_length") if learnt else MAX_DIM


def _rope(values: _Values) -> dict[str, float | str]:
    """llama.cpp's load_hparams, with its defaults; nothing of YaRN's that is seldom stated."""
    rope: dict[str, float | str] = {
        "rope_freq_scale": 1.0,
        "rope_scaling_type": values.text(f"{values.architecture}.rope.scaling.type") or "linear",
        "yarn_orig_ctx": values.whole("rope.scaling.original_context_length")
        or values.whole("context_length"),
    }
    if factor := values.number("rope.scaling.factor") or values.number("rope.scale_linear"):
        rope["rope_freq_scale"] = 1.0 / factor
    if stretch := values.number("rope.scaling.yarn_ext_factor"):
        rope["yarn_ext_factor"] = stretch
    if not values.number("rope.scaling.alpha"):  # This one changes the base, in some way.
        rope["rope_freq_base"] = values.number("rope.freq_base") or 10_000.0
    return rope


def _pooling(values: _Values) -> str | None:
    """As stated; the mean for encoders that do not say (`worker/embedding.py`)."""
    stated = values.metadata.get(f"{values.architecture}.pooling_type")
    if isinstance(stated, int) and stated in _POOLING:
        return _POOLING[stated]
    return "mean" if _is_encoder(values) else None


def _classifies(values: _Values, tensors: Sequence[Tensor]) -> bool:
    """llama.cpp reads one output of each text for every label, however many there are
    (llama-context.cpp): of other tensors it would take those of another text."""
    labels = values.metadata.get(f"{values.architecture}.classifier.output_labels")
    if isinstance(labels, Omitted):
        n_labels = labels.n
    else:
        n_labels = len(labels) if isinstance(labels, tuple) else 0
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    shape = shapes.get("cls.output.weight", shapes.get("cls.weight", ()))
    return bool(shape) and math.prod(shape[1:]) == max(1, n_labels)


def _is_encoder(values: _Values) -> bool:
    return values.metadata.get(f"{values.architecture}.attention.causal") is False


class _Values:
    """Hyper-parameters by their names without the architecture, checked."""

    def __init__(self, metadata: dict[str, Value]) -> None:
        self.metadata = metadata
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture.isprintable():
            raise InvalidGguf("it does not say which architecture it is of")
        self.architecture = architecture[:64]

    def text(self, key: str) -> str | None:
        """A text of the metadata, if it is one."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> float:
        """A number of any kind, 0 if there is none."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0

    def whole(self, key: str, default: int = 0, *, bare: bool = False) -> int:
        """A whole number within bounds; of a list the greatest."""
        value = self.metadata.get(key if bare else f"{self.architecture}.{key}", default)
        return max(self._whole_items(key, value), default=default)

    def by_layer(self, key: str, n_layer: int) -> list[int]:
        """A number for each layer, from a list or from one for all."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if not isinstance(value, tuple):
            return [self.whole(key)] * n_layer
        if len(value) < n_layer:
            raise InvalidGguf(f"its {key} is too short")
        return self._whole_items(key, value)[:n_layer]

    def _whole_items(self, key: str, value: Value) -> list[int]:
        items = value if isinstance(value, tuple) else (value,)
        whole = [item for item in items if isinstance(item, int) and 0 <= item < MAX_DIM]
        if len(whole) < len(items):
            raise InvalidGguf(f"its {key} is no number a model can have")
        return whole


def _quantization(values: _Values, tensors: Sequence[Tensor]) -> str:
    """What the file is said to be, else the type that most of its bytes are in."""
    told = values.metadata.get("general.file_type")
    if isinstance(told, int) and told in FILE_TYPES:
        return FILE_TYPES[told]
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.type.name] += tensor.n_bytes
    return sizes.most_common(1)[0][0] if sizes else "none"


def _shape(values: _Values, tensors: Sequence[Tensor]) -> Shape:
    n_layer = values.whole("block_count")
    if n_layer > MAX_LAYERS:
        raise InvalidGguf("it claims to have absurdly many layers")
    layer_bytes = [0] * n_layer
    attends, recurs, other = set(), set(), 0
    for tensor in tensors:
        place, number, part = [*tensor.name.split(".", 2), "", ""][:3]
        if place == "blk" and number.isdecimal() and int(number) < n_layer:
            layer_bytes[int(number)] += tensor.n_bytes
            if part.startswith("attn_") and not part.startswith(_NO_ATTENTION):
                attends.add(int(number))
            if part.startswith(_RECURRENT):
                recurs.add(int(number))
        else:
            other += tensor.n_bytes
    if values.architecture not in _BOTH_IN_ONE:
        attends -= recurs
    routed = max(1, values.whole("expert_used_count"))
    is_encoder = _is_encoder(values)
    heads = _heads(values, n_layer, set() if is_encoder else attends)
    head, sliding_head = _head_lengths(values)
    lengths = [head] * n_layer
    if sliding_head != head:
        lengths = [sliding_head if slides else head for slides in _sliding(values, n_layer)]
    # Multi-head latent attention keeps one vector, which is key and value at once.
    latent = values.whole("attention.key_length_mla") > 0
    return Shape(
        layer_bytes=tuple(layer_bytes),
        other_bytes=other,
        k_elements=sum(n * key for n, (key, _) in zip(heads, lengths, strict=True)),
        v_elements=0 if latent else sum(n * v for n, (_, v) in zip(heads, lengths, strict=True)),
        key_lengths=(head[0], sliding_head[0]),
        value_lengths=(head[1], sliding_head[1]),
        state_elements=_state(values) * len(recurs),
        is_encoder=is_encoder,
        n_masks=2 if values.whole("attention.sliding_window") else 1,
        n_embd=values.whole("embedding_length"),
        n_state=6 * values.whole("ssm.inner_size"),
        n_head=values.whole("attention.head_count"),
        n_ff=max(
            values.whole("feed_forward_length"),
            routed * values.whole("expert_feed_forward_length"),
        ),
        gated=any(".ffn_gate" in tensor.name for tensor in tensors),
        n_routed=routed,
        n_vocab=_n_vocab(values, tensors),
    )


_NO_ATTENTION = ("attn_norm", "attn_gate", "attn_post_norm")
"""Tensors named so that layers without attention have too."""
_RECURRENT = ("ssm_", "shortconv.", "time_mix_")
"""Tensors of layers with a state. Beside them there may be some named as those of attention."""
_BOTH_IN_ONE = ("falcon-h1",)
"""Architectures whose layers have a state and attend (llama-model.cpp, `filter_attn`)."""


def _head_lengths(values: _Values) -> tuple[tuple[int, int], tuple[int, int]]:
    """Elements of one head's key and value, and the same for layers with a sliding window.

    As in llama.cpp's llama-model.cpp, load_hparams.
    """
    n_head = values.whole("attention.head_count")
    if not n_head:
        return (0, 0), (0, 0)
    per_head = values.whole("embedding_length") // n_head
    key = values.whole("attention.key_length", per_head)
    value = values.whole("attention.value_length", per_head)
    return (key, value), (
        values.whole("attention.key_length_swa", key),
        values.whole("attention.value_length_swa", value),
    )


def _sliding(values: _Values, n_layer: int) -> list[bool]:
    """Which layers have a sliding window, as far as the file lists them.

    What a single number there means depends on the architecture.
    """
    key = "attention.sliding_window_pattern"
    if not isinstance(values.metadata.get(f"{values.architecture}.{key}"), tuple):
        return [False] * n_layer
    return [bool(slides) for slides in values.by_layer(key, n_layer)]


def _heads(values: _Values, n_layer: int, attends: set[int]) -> list[int]:
    """Heads of each layer that have keys in one cell (llama-hparams.cpp, n_embd_k_gqa).

    Layers without attention have no cells, nor have the last ones of models that share them.
    """
    kind = "head_count"
    if f"{values.architecture}.attention.head_count_kv" in values.metadata:
        kind = "head_count_kv"
    n_head_kv = values.by_layer(f"attention.{kind}", n_layer)
    own = n_layer - min(values.whole("attention.shared_kv_layers"), n_layer)
    return [n if i in attends and i < own else 0 for i, n in enumerate(n_head_kv)]


def _state(values: _Values) -> int:
    """Elements of one layer's recurrent state (llama-hparams.cpp, n_embd_r and n_embd_s)."""
    n_embd = values.whole("embedding_length")
    if size := values.whole("wkv.head_size"):
        return values.whole("token_shift_count", 2) * n_embd + n_embd * size
    if cached := values.whole("shortconv.l_cache"):
        return n_embd * (cached - 1)
    kernel, inner = values.whole("ssm.conv_kernel"), values.whole("ssm.inner_size")
    state, groups = values.whole("ssm.state_size"), values.whole("ssm.group_count")
    if head := values.whole("kda.head_dim"):
        n_head = values.whole("attention.head_count")
        return 3 * (kernel - 1 if kernel else 3) * n_head * head + head * head * n_head
    return max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner


def _n_vocab(values: _Values, tensors: Sequence[Tensor]) -> int:
    tokens = values.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Omitted):
        return tokens.n
    if isinstance(tokens, tuple):
        return len(tokens)
    rows = (t.shape[1] for t in tensors if t.name == "token_embd.weight" and len(t.shape) == 2)
    return values.whole("vocab_size", next(rows, 0))
