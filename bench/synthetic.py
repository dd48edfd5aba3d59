"""Builds the benchmark model: Qwen2.5's exact shape, random weights, quantized to Q4_K_M.

Speed depends on shapes and types, not on what the weights say. The vocabulary is a byte-level BPE
trained on Python's own documentation, so English comes out as words, and filled up to full size;
end-of-generation tokens are practically never chosen. A `chain` model of the same shape says one
known word after another, for what depends on the text. `python -m bench.synthetic --size 0.5b`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from llm_server.llama.lib import lib
from tests.tiny_models import CONTROL, WORDS, byte_alphabet

BUILD = Path(__file__).parent.parent / "build"
N_VOCAB = 151_936
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How llama.cpp's `qwen2` pre-tokenizer cuts text (LLAMA_VOCAB_PRE_TYPE_QWEN2)."""

TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
{{- 'You may call these functions:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor %}
{{- '\\n</tools>\\nWrite each call as JSON with its name and arguments between tags:\\n' }}
{{- '<tool_call>{"name": <name>, "arguments": <object>}</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
{{- '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.role == 'assistant' and message.tool_calls %}
{{- '<|im_start|>assistant' }}
{%- if message.content %}{{- '\\n' + message.content }}{% endif %}
{%- for call in message.tool_calls %}
{{- '\\n<tool_call>{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}
{{- '}</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role != 'system' or not loop.first %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
"""ChatML with calls in Hermes' syntax: every server knows how to force those."""


MARKERS = ("<tool_call>", "</tool_call>")
"""Tokens of their own, as in Qwen2.5's vocabulary."""
ADDED = (*MARKERS, *CONTROL)


@dataclass(frozen=True, slots=True)
class Shape:
    """The hyper-parameters of a Qwen2.5 model (its config.json)."""

    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int


SHAPES = {
    "0.5b": Shape(n_layer=24, n_embd=896, n_head=14, n_head_kv=2, n_ff=4864),
    "1.5b": Shape(n_layer=28, n_embd=1536, n_head=12, n_head_kv=2, n_ff=8960),
}


def documentation() -> str:
    """Some 600 KB of technical English that every Python installation has, and common words."""
    return "\n".join([*topics.values(), *[" ".join(["", *WORDS])] * 3])


def vocabulary(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """(tokens, merges): `N_VOCAB` less the added tokens distinct byte strings, and their merges.

    Merges learned from text come first; the rest join two learned tokens at the lowest ranks, so
    they seldom fire, but tables and samplers have their real size.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=60_000, min_frequency=2, initial_alphabet=byte_alphabet(), show_progress=False
    )
    trained.train_from_iterator(documentation().splitlines(keepends=True), trainer)
    ids = trained.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    merges = _merges(trained)
    words = [token for token in tokens if re.fullmatch("Ġ?[A-Za-z]{2,8}", token)]
    suffixes = [word for word in words if not word.startswith("Ġ")]
    known = set(tokens)
    while len(tokens) < N_VOCAB - len(ADDED):
        left, right = words[rng.integers(len(words))], suffixes[rng.integers(len(suffixes))]
        if left + right not in known:
            known.add(left + right)
            tokens.append(left + right)
            merges.append(f"{left} {right}")
    return tokens, merges


def _merges(trained: Tokenizer) -> list[str]:

    pairs = json.loads(trained.to_str())["model"]["merges"]
    return [" ".join(pair) for pair in pairs]


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """(name, shape, standard deviation) of every tensor; 0 stands for all ones (a norm).

    Projections keep the variance of what goes through. Embeddings are small beside what the
    layers add, so that the tied output does not just repeat the last token.
    """
    embd, kv = shape.n_embd, shape.n_head_kv * (shape.n_embd // shape.n_head)
    yield "token_embd.weight", (N_VOCAB, embd), 0.02
    for layer in range(shape.n_layer):
        blk = f"blk.{layer}"
        yield f"{blk}.attn_norm.weight", (embd,), 0
        for name, n_out in (("q", embd), ("k", kv), ("v", kv)):
            yield f"{blk}.attn_{name}.weight", (n_out, embd), embd**-0.5
            yield f"{blk}.attn_{name}.bias", (n_out,), 0.1
        yield f"{blk}.attn_output.weight", (embd, embd), embd**-0.5
        yield f"{blk}.ffn_norm.weight", (embd,), 0
        yield f"{blk}.ffn_gate.weight", (shape.n_ff, embd), embd**-0.5
        yield f"{blk}.ffn_up.weight", (shape.n_ff, embd), embd**-0.5
        yield f"{blk}.ffn_down.weight", (embd, shape.n_ff), shape.n_ff**-0.5
    yield "output_norm.weight", (embd,), 0


def values(size: tuple[int, ...], std: float, rng: np.random.Generator) -> np.ndarray:
    """One tensor: matrices in F16, vectors in F32 as llama.cpp wants them."""
    if std == 0:
        return np.ones(size, np.float32)
    if len(size) == 1:
        return rng.standard_normal(size, np.float32) * np.float32(std)
    matrix = np.empty(size, np.float16)
    for start in range(0, size[0], 4096):  # slices: F32 of the whole would double the memory
        rows = matrix[start : start + 4096]
        rows[:] = rng.standard_normal(rows.shape, np.float32) * np.float32(std)
    return matrix


def chain_ids(tokens: Sequence[str]) -> list[int]:
    """The line break, and then the words that a `chain` model says one after the other."""
    words = [id for id, token in enumerate(tokens[:60_000]) if re.fullmatch("Ġ[a-z]{3,}", token)]
    return [tokens.index("Ċ"), *words]


def chained(embeddings: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Output weights with which each of `ids` is followed by the next, the last by the second.

    Where the layers add nothing, a logit is the product with the last token's embedding.
    """
    output = np.zeros_like(embeddings)
    output[ids[1:]] = embeddings[ids[:-1]]
    output[ids[1]] += embeddings[ids[-1]]
    return output


def write_f16(path: Path, size: str, seed: int, *, chain: bool = False) -> None:
    """Write the unquantized model, one tensor in memory at a time."""
    shape, rng = SHAPES[size], np.random.default_rng(seed)
    writer = GGUFWriter(path, "qwen2")
    writer.add_name(f"synthetic {size}")
    writer.add_context_length(32_768)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    tokens, merges = vocabulary(rng)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*tokens, *ADDED])
    kinds = [TokenType.USER_DEFINED] * len(MARKERS) + [TokenType.CONTROL] * len(CONTROL)
    writer.add_token_types([TokenType.NORMAL] * len(tokens) + kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(N_VOCAB - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    infos = [(name, dims) for name, dims, _ in tensors(shape)]
    infos += [("output.weight", (N_VOCAB, shape.n_embd))] if chain else []
    for name, dims in infos:
        dtype = np.dtype(np.float16 if len(dims) > 1 else np.float32)
        writer.add_tensor_info(name, dims, dtype, int(np.prod(dims)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dims, std in tensors(shape):
        tensor = values(dims, std, rng)
        if name == "token_embd.weight":
            tensor[-len(ADDED) :] *= 0.01  # tied to the output: their logits stay near 0
            embeddings = tensor
        if chain and name.endswith(("attn_output.weight", "ffn_down.weight")):
            tensor[:] = 0
        writer.write_tensor_data(tensor)
    if chain:
        writer.write_tensor_data(chained(embeddings, chain_ids(tokens)))
    writer.close()


def quantize(source: Path, target: Path, n_threads: int) -> None:
    """llama.cpp's own Q4_K_M.

    Raises:
        RuntimeError: the quantizer failed; the reason is in its log.
    """
    params = lib.llama_model_quantize_default_params()
    params.ftype = lib.LLAMA_FTYPE_MOSTLY_Q4_K_M
    params.nthread = n_threads
    if lib.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params)):
        raise RuntimeError(f"llama.cpp could not quantize {source.name}")


def build(
    size: str = "0.5b", folder: Path = BUILD, n_threads: int = 2, *, chain: bool = False
) -> Path:
    """The model file, built if it is not there yet: a minute and 1 GB of disk for 0.5b."""
    path = folder / f"{'chain' if chain else 'synthetic'}-{size}-q4_k_m.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    full, part = path.with_suffix(".f16.tmp"), path.with_suffix(".tmp")
    try:
        write_f16(full, size, seed=1, chain=chain)
        quantize(full, part, n_threads)
        part.rename(path)
    finally:
        full.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the synthetic benchmark model.")
    parser.add_argument("--size", choices=sorted(SHAPES), default="0.5b")
    parser.add_argument("--folder", type=Path, default=BUILD)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print(build(args.size, args.folder, args.threads))


if __name__ == "__main__":
    main()
