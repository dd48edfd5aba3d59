"""Tiny random-weight GGUF models, one for each kind of memory and of vocabulary, built by code.

Weights are F32 and seeded, so exactness tests hold bit for bit and every build gives the same
file. Scales keep attention peaked and logits spread (standard deviation about 4): answers depend
on the prompt and end-of-turn tokens are rare. Nothing here knows pytest or llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, PoolingType, TokenType

from llm_server.gguf.header import read_header

N_EMBD = 64
N_HEAD = 2
HEAD = 32
"""Length of a head: a whole Q8_0 block, so that quantized KV types can be tested too."""
N_FF = 128
N_CTX_TRAIN = 4096
WINDOW = 32
"""Sliding window of `build_sliding`, in tokens."""

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = (
    "the of and to in is that it you for on are with as be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up "
    "other about out many then them these so some her would make like him into time has look two "
    "more write go see number no way could people my than first water been call who oil its now "
    "find long down day did get come made may part user assistant system tool name hello world"
).split()

CHATML = """\
{%- if tools -%}
{{- '<|im_start|>system\\n' + (messages[0].content if messages[0].role == 'system' else '') -}}
{{- '\\n<tools>\\n' -}}
{%- for tool in tools -%}{{- (tool | tojson) + '\\n' -}}{%- endfor -%}
{{- '</tools><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content -}}
{{- '\\n</tool_response><|im_end|>\\n' -}}
{%- elif not (tools and loop.first and message.role == 'system') -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') -}}
{%- for call in message.tool_calls or [] -%}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' -}}
{%- set arguments = call.function.arguments -%}
{{- arguments if arguments is string else arguments | tojson -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer as GGUF metadata. `eog` are the ids whose logits the builders keep low."""

    model: str
    pre: str
    tokens: list[str]
    types: list[TokenType]
    eos: int
    eog: tuple[int, ...]
    bos: int | None = None
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    named: tuple[tuple[str, int], ...] = ()
    """Further tokens that the file names, such as ("eom", 300)."""


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each of the 256 bytes (`bytes_to_unicode` there)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in visible}
    hidden = (byte for byte in range(256) if byte not in letters)
    letters.update({byte: chr(256 + i) for i, byte in enumerate(hidden)})
    return [letters[byte] for byte in range(256)]


def _chain(words: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Merges that build each word letter by letter from its left end, each merge once."""
    seen = set()
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in seen:
                seen.add(word[:end])
                yield word[: end - 1], word[end - 1]


def bpe_vocabulary() -> Vocabulary:
    """Byte-level BPE: 256 bytes, the common words after a blank, ChatML's control tokens."""
    merges = list(_chain("Ġ" + word for word in WORDS))
    plain = byte_alphabet() + [left + right for left, right in merges]
    n = len(plain)
    return Vocabulary(
        model="gpt2",
        pre="qwen2",
        tokens=[*plain, *CONTROL],
        types=[TokenType.NORMAL] * n + [TokenType.CONTROL] * len(CONTROL),
        eos=n + 2,
        eog=(n, n + 2),
        merges=tuple(f"{left} {right}" for left, right in merges),
    )


def spm_vocabulary() -> Vocabulary:
    """SentencePiece: byte fallback, ASCII and the common words, a BOS token put before prompts."""
    special = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["▁", *(chr(c) for c in range(33, 127)), "é", "ü", "世", "界"]
    words = [left + right for left, right in _chain("▁" + word for word in WORDS)]
    n = len(special) + len(fallback) + len(letters) + len(words)
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=[*special, *fallback, *letters, *words, *CONTROL[1:]],
        types=[TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
        + [TokenType.BYTE] * len(fallback)
        + [TokenType.NORMAL] * (len(letters) + len(words))
        + [TokenType.CONTROL] * 2,
        eos=n + 1,
        eog=(2, n + 1),
        bos=1,
        scores=(
            *(0.0 for _ in special + fallback),
            *(-1000.0 - i for i in range(len(letters))),
            *(-1.0 - i for i in range(len(words))),
            *(0.0 for _ in CONTROL[1:]),
        ),
    )


class _Builder:
    """Collects one model's metadata and random tensors, then writes the file."""

    def __init__(
        self,
        path: Path,
        arch: str,
        vocabulary: Vocabulary,
        n_layer: int,
        seed: int,
        n_ctx_train: int = N_CTX_TRAIN,
    ):
        self.path = path
        self.n_layer = n_layer
        self.vocabulary = vocabulary
        self.random = np.random.default_rng(seed)
        self.writer = GGUFWriter(path, arch)
        self.writer.add_name(path.stem)
        self.writer.add_context_length(n_ctx_train)
        self.writer.add_embedding_length(N_EMBD)
        self.writer.add_block_count(n_layer)
        self.writer.add_feed_forward_length(N_FF)
        self.writer.add_layer_norm_rms_eps(1e-5)
        self._add_vocabulary()

    def _add_vocabulary(self) -> None:
        writer, vocabulary = self.writer, self.vocabulary
        writer.add_tokenizer_model(vocabulary.model)
        writer.add_tokenizer_pre(vocabulary.pre)
        writer.add_token_list(vocabulary.tokens)
        writer.add_token_types(vocabulary.types)
        if vocabulary.merges:
            writer.add_token_merges(list(vocabulary.merges))
        if vocabulary.scores:
            writer.add_token_scores(list(vocabulary.scores))
        if vocabulary.bos is not None:
            writer.add_bos_token_id(vocabulary.bos)
        writer.add_add_bos_token(vocabulary.bos is not None)
        writer.add_eos_token_id(vocabulary.eos)
        for name, token in vocabulary.named:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
        writer.add_chat_template(CHATML)

    def add(self, name: str, values: np.ndarray) -> None:
        """A tensor; axes in numpy's order, the reverse of llama.cpp's."""
        self.writer.add_tensor(name, values.astype(np.float32))

    def normal(self, name: str, *shape: int, std: float) -> None:
        self.add(name, self.random.normal(0, std, shape))

    def matrix(self, name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        """A projection whose outputs have standard deviation `gain` for unit inputs."""
        self.normal(name, n_out, n_in, std=gain / np.sqrt(n_in))

    def ones(self, name: str, n: int) -> None:
        self.add(name, np.ones(n))

    def embeddings(self, std: float = 1.0, norm: str = "output_norm") -> None:
        """Input and output embeddings; end-of-generation rows are scaled down to be rare."""
        n_vocab = len(self.vocabulary.tokens)
        self.normal("token_embd.weight", n_vocab, N_EMBD, std=std)
        self.ones(f"{norm}.weight", N_EMBD)
        output = self.random.normal(0, 4.0 / np.sqrt(N_EMBD), (n_vocab, N_EMBD))
        output[list(self.vocabulary.eog)] *= 0.25
        self.add("output.weight", output)

    def attention_metadata(self, n_head_kv: int | list[int] = 1) -> None:
        self.writer.add_head_count(N_HEAD)
        self.writer.add_head_count_kv(n_head_kv)
        self.writer.add_rope_freq_base(10_000.0)

    def attention(
        self, layer: int, *, bias: bool = False, qk_norm: bool = False, gated: bool = False
    ) -> None:
        """Queries and keys have gain 1.5, so scores spread by about 2: attention is peaked.

        Where it is `gated`, each query has its gate beside it.
        """
        blk = f"blk.{layer}"
        n_query = 2 * N_HEAD if gated else N_HEAD
        for name, n_head, gain in (("q", n_query, 1.5), ("k", 1, 1.5), ("v", 1, 1.0)):
            self.matrix(f"{blk}.attn_{name}.weight", n_head * HEAD, N_EMBD, gain)
            if bias:
                self.normal(f"{blk}.attn_{name}.bias", n_head * HEAD, std=0.1)
        self.matrix(f"{blk}.attn_output.weight", N_EMBD, N_HEAD * HEAD, 2.0)
        if qk_norm:
            self.add(f"{blk}.attn_q_norm.weight", np.full(HEAD, 1.5))
            self.add(f"{blk}.attn_k_norm.weight", np.full(HEAD, 1.5))

    def feed_forward(self, layer: int, *, norm: bool = True) -> None:
        blk = f"blk.{layer}"
        if norm:
            self.ones(f"{blk}.ffn_norm.weight", N_EMBD)
        self.matrix(f"{blk}.ffn_gate.weight", N_FF, N_EMBD)
        self.matrix(f"{blk}.ffn_up.weight", N_FF, N_EMBD)
        self.matrix(f"{blk}.ffn_down.weight", N_EMBD, N_FF, 2.0)

    def write(self) -> Path:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


def build_attention(path: Path, seed: int = 1, vocabulary: Vocabulary | None = None) -> Path:
    """A `qwen2` model with the byte-level BPE vocabulary unless told another."""
    builder = _Builder(path, "qwen2", vocabulary or bpe_vocabulary(), n_layer=2, seed=seed)
    builder.attention_metadata()
    builder.embeddings()
    for layer in range(builder.n_layer):
        builder.ones(f"blk.{layer}.attn_norm.weight", N_EMBD)
        builder.attention(layer, bias=True)
        builder.feed_forward(layer)
    return builder.write()


RERANK = """\
<|im_start|>system
the word is yes or no<|im_end|>
<|im_start|>user
look: {query}
write: {document}<|im_end|>
<|im_start|>assistant
"""
"""As Qwen3-Reranker has it."""


def build_reranker(path: Path, seed: int = 8) -> Path:
    """A `qwen3` model with two labels, that is asked with a template."""
    builder = _Builder(path, "qwen3", bpe_vocabulary(), n_layer=2, seed=seed)
    builder.attention_metadata()
    builder.writer.add_pooling_type(PoolingType.RANK)
    builder.writer.add_classifier_output_labels(["yes", "no"])
    builder.writer.add_string("tokenizer.chat_template.rerank", RERANK)
    builder.embeddings()
    for layer in range(builder.n_layer):
        builder.ones(f"blk.{layer}.attn_norm.weight", N_EMBD)
        builder.attention(layer, qk_norm=True)
        builder.feed_forward(layer)
    builder.matrix("cls.output.weight", 2, N_EMBD)
    return builder.write()


def build_lora(path: Path, seed: int = 9, rank: int = 4) -> Path:
    """A LoRA adapter of `build_attention`'s models: changed queries and outputs of attention."""
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for layer in range(2):
        for name, n_out, n_in in (("q", N_HEAD * HEAD, N_EMBD), ("output", N_EMBD, N_HEAD * HEAD)):
            base = f"blk.{layer}.attn_{name}.weight"
            for part, shape in (("a", (rank, n_in)), ("b", (n_out, rank))):
                values = random.normal(0, 0.5, shape).astype(np.float32)
                writer.add_tensor(f"{base}.lora_{part}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def build_wide_lora(path: Path, base: Path, rank: int) -> Path:
    """A LoRA adapter for all matrices in the layers of `base`, that changes nothing."""
    header = read_header(base)
    writer = GGUFWriter(path, str(header.metadata["general.architecture"]))
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for tensor in header.tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            n_in, n_out = tensor.shape
            writer.add_tensor(f"{tensor.name}.lora_a", np.zeros((rank, n_in), np.float32))
            writer.add_tensor(f"{tensor.name}.lora_b", np.zeros((n_out, rank), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def build_spm(path: Path, seed: int = 2) -> Path:
    """A `llama` model with the SentencePiece vocabulary."""
    builder = _Builder(path, "llama", spm_vocabulary(), n_layer=2, seed=seed)
    builder.attention_metadata()
    builder.writer.add_rope_dimension_count(HEAD)
    builder.embeddings()
    for layer in range(builder.n_layer):
        builder.ones(f"blk.{layer}.attn_norm.weight", N_EMBD)
        builder.attention(layer)
        builder.feed_forward(layer)
    return builder.write()


def build_sliding(path: Path, seed: int = 3) -> Path:
    """A `gemma3` model: every second layer sees only the last `WINDOW` tokens."""
    builder = _Builder(path, "gemma3", bpe_vocabulary(), n_layer=2, seed=seed)
    builder.attention_metadata()
    builder.writer.add_key_length(HEAD)
    builder.writer.add_value_length(HEAD)
    builder.writer.add_sliding_window(WINDOW)
    builder.writer.add_sliding_window_pattern(2)
    # gemma3 multiplies embeddings by sqrt(n_embd).
    builder.embeddings(std=1 / np.sqrt(N_EMBD))
    for layer in range(builder.n_layer):
        blk = f"blk.{layer}"
        for norm in ("attn_norm", "post_attention_norm", "post_ffw_norm"):
            builder.ones(f"{blk}.{norm}.weight", N_EMBD)
        builder.attention(layer, qk_norm=True)
        builder.feed_forward(layer)
    return builder.write()


def build_learnt_positions(path: Path, n_ctx_train: int, seed: int = 6) -> Path:
    """A `gpt2` model: it has learnt a vector for each position, and none for those beyond."""
    builder = _Builder(path, "gpt2", bpe_vocabulary(), 2, seed, n_ctx_train)
    builder.writer.add_head_count(N_HEAD)
    builder.writer.add_layer_norm_eps(1e-5)
    builder.embeddings()
    builder.add("output_norm.bias", np.zeros(N_EMBD))
    builder.normal("position_embd.weight", n_ctx_train, N_EMBD, std=0.5)
    for layer in range(builder.n_layer):
        blk = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            builder.ones(f"{blk}.{norm}.weight", N_EMBD)
            builder.add(f"{blk}.{norm}.bias", np.zeros(N_EMBD))
        for name, n_out, n_in in (
            ("attn_qkv", 3 * N_EMBD, N_EMBD),
            ("attn_output", N_EMBD, N_EMBD),
            ("ffn_up", N_FF, N_EMBD),
            ("ffn_down", N_EMBD, N_FF),
        ):
            builder.matrix(f"{blk}.{name}.weight", n_out, n_in)
            builder.add(f"{blk}.{name}.bias", np.zeros(n_out))
    return builder.write()


def build_recurrent(path: Path, seed: int = 4) -> Path:
    """A `mamba` model; time steps are short, so its state remembers dozens of tokens."""
    d_inner, d_state, d_conv, dt_rank = 2 * N_EMBD, 16, 4, 4
    builder = _Builder(path, "mamba", bpe_vocabulary(), n_layer=2, seed=seed)
    builder.writer.add_ssm_conv_kernel(d_conv)
    builder.writer.add_ssm_inner_size(d_inner)
    builder.writer.add_ssm_state_size(d_state)
    builder.writer.add_ssm_time_step_rank(dt_rank)
    builder.embeddings()
    for layer in range(builder.n_layer):
        blk = f"blk.{layer}"
        builder.ones(f"{blk}.attn_norm.weight", N_EMBD)
        builder.matrix(f"{blk}.ssm_in.weight", 2 * d_inner, N_EMBD)
        builder.normal(f"{blk}.ssm_conv1d.weight", d_inner, d_conv, std=0.5)
        builder.normal(f"{blk}.ssm_conv1d.bias", d_inner, std=0.1)
        builder.matrix(f"{blk}.ssm_x.weight", dt_rank + 2 * d_state, d_inner, 2.0)
        builder.matrix(f"{blk}.ssm_dt.weight", d_inner, dt_rank, 0.5)
        builder.add(f"{blk}.ssm_dt.bias", np.full(d_inner, -3.0))
        decay = np.arange(1, d_state + 1) / d_state
        builder.add(f"{blk}.ssm_a", np.tile(-decay, (d_inner, 1)))
        builder.ones(f"{blk}.ssm_d", d_inner)
        builder.matrix(f"{blk}.ssm_out.weight", N_EMBD, d_inner, 2.0)
    return builder.write()


def build_hybrid(path: Path, seed: int = 5, n_embd_out: int | None = None) -> Path:
    """An `lfm2` model: short convolutions (a recurrent state) around one attention layer.

    With `n_embd_out` its vectors are projected to that length, as LFM2-ColBERT's are.
    """
    l_cache = 3
    kinds = ("conv", "attention", "conv")
    builder = _Builder(path, "lfm2", bpe_vocabulary(), n_layer=len(kinds), seed=seed)
    builder.attention_metadata([int(kind == "attention") for kind in kinds])
    builder.writer.add_shortconv_l_cache(l_cache)
    builder.embeddings(norm="token_embd_norm")
    for layer, kind in enumerate(kinds):
        blk = f"blk.{layer}"
        builder.ones(f"{blk}.attn_norm.weight", N_EMBD)
        if kind == "attention":
            builder.attention(layer, qk_norm=True)
        else:
            builder.normal(f"{blk}.shortconv.conv.weight", N_EMBD, l_cache, std=0.7)
            builder.matrix(f"{blk}.shortconv.in_proj.weight", 3 * N_EMBD, N_EMBD)
            builder.matrix(f"{blk}.shortconv.out_proj.weight", N_EMBD, N_EMBD, 2.0)
        builder.feed_forward(layer)
    if n_embd_out is not None:
        builder.writer.add_uint32("lfm2.embedding_length_out", n_embd_out)
        builder.matrix("dense_2.weight", n_embd_out, N_EMBD)
    return builder.write()


def build_delta(path: Path, seed: int = 7) -> Path:
    """A `qwen35` model: a gated delta net in every layer but the last, which attends."""
    d_state, n_group, n_value, d_conv = 16, 2, 4, 4
    d_inner = d_state * n_value
    d_conv_in = d_inner + 2 * n_group * d_state
    builder = _Builder(path, "qwen35", bpe_vocabulary(), n_layer=4, seed=seed)
    builder.attention_metadata()
    builder.writer.add_key_length(HEAD)
    builder.writer.add_value_length(HEAD)
    builder.writer.add_rope_dimension_sections([4, 4, 4, 4])
    builder.writer.add_ssm_conv_kernel(d_conv)
    builder.writer.add_ssm_inner_size(d_inner)
    builder.writer.add_ssm_state_size(d_state)
    builder.writer.add_ssm_time_step_rank(n_value)
    builder.writer.add_ssm_group_count(n_group)
    builder.embeddings()
    for layer in range(builder.n_layer):
        blk = f"blk.{layer}"
        for norm in ("attn_norm", "post_attention_norm"):
            builder.ones(f"{blk}.{norm}.weight", N_EMBD)
        if layer == builder.n_layer - 1:
            builder.attention(layer, qk_norm=True, gated=True)
        else:
            builder.matrix(f"{blk}.attn_qkv.weight", d_conv_in, N_EMBD)
            builder.matrix(f"{blk}.attn_gate.weight", d_inner, N_EMBD)
            builder.normal(f"{blk}.ssm_conv1d.weight", d_conv_in, d_conv, std=0.5)
            builder.add(f"{blk}.ssm_dt.bias", np.full(n_value, -1.0))
            builder.add(f"{blk}.ssm_a", np.full(n_value, -0.5))
            for name in ("ssm_beta", "ssm_alpha"):
                builder.matrix(f"{blk}.{name}.weight", n_value, N_EMBD)
            builder.ones(f"{blk}.ssm_norm.weight", d_state)
            builder.matrix(f"{blk}.ssm_out.weight", N_EMBD, d_inner, 2.0)
        builder.feed_forward(layer, norm=False)
    return builder.write()
