"""Writes trained weights as a GGUF file that llama.cpp runs: `python -m training.export --help`.

Matrices become Q8_0, norms stay F32. Knows GGUF's names for the Qwen3 architecture; does not
train, and does not judge answers.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

from training import weights
from training.model import Config, DemoModel
from training.render import TEMPLATE
from training.tokenizer import CONTROL_TOKENS, END_OF_TEXT, TURN_END, VISIBLE_TOKENS, load

ARCHITECTURE = "qwen3"
_Q8 = gguf.GGMLQuantizationType.Q8_0
_F32 = gguf.GGMLQuantizationType.F32


def export(model: DemoModel, path: Path, *, quantized: bool = True) -> None:
    """Writes the model, its tokenizer and its chat template to `path`."""
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    _describe(writer)
    _sizes(writer, model.config, quantized=quantized)
    _vocabulary(writer)
    for name, tensor in model.state_dict().items():
        array = tensor.detach().float().cpu().numpy().astype(np.float32)
        if array.ndim == 2 and quantized:
            writer.add_tensor(name, gguf.quants.quantize(array, _Q8), raw_dtype=_Q8)
        else:
            writer.add_tensor(name, array, raw_dtype=_F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter) -> None:
    writer.add_name("LLM Server Demo")
    writer.add_description(
        "The guide that ships with llm-server: it answers questions about the server and calls "
        "tools. Trained from scratch on generated text; it knows nothing else."
    )
    writer.add_license("mit")
    writer.add_size_label("10M")
    writer.add_languages(["en"])
    writer.add_tags(["demo", "tool-calling", "text-generation"])
    # A guide is to be right before it is to be varied.
    writer.add_sampling_temp(0.2)


def _sizes(writer: gguf.GGUFWriter, config: Config, *, quantized: bool) -> None:
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.epsilon)
    writer.add_vocab_size(config.vocab)
    kind = gguf.LlamaFileType.MOSTLY_Q8_0 if quantized else gguf.LlamaFileType.ALL_F32
    writer.add_file_type(kind)


def _vocabulary(writer: gguf.GGUFWriter) -> None:
    tokenizer = load()
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens = [by_id[index] for index in range(len(by_id))]
    kinds = [_kind(token) for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges())
    writer.add_eos_token_id(tokenizer.token_to_id(TURN_END))
    writer.add_eot_token_id(tokenizer.token_to_id(TURN_END))
    writer.add_pad_token_id(tokenizer.token_to_id(END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE.read_text(encoding="utf-8"))


def _kind(token: str) -> gguf.TokenType:
    if token in CONTROL_TOKENS:
        return gguf.TokenType.CONTROL
    return gguf.TokenType.USER_DEFINED if token in VISIBLE_TOKENS else gguf.TokenType.NORMAL


def merges() -> list[str]:
    """The tokenizer's merges in llama.cpp's form."""
    pairs = json.loads(load().to_str())["model"]["merges"]
    return [f"{left} {right}" for left, right in pairs]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write trained weights as GGUF.")
    parser.add_argument(
        "weights",
        type=Path,
        nargs="+",
        help="folder that training.train wrote, or GGUF file; several are averaged",
    )
    parser.add_argument("gguf", type=Path, help="file to write")
    parser.add_argument("--f32", action="store_true", help="do not quantize")
    args = parser.parse_args()
    export(weights.average(args.weights, Config()), args.gguf, quantized=not args.f32)
    print(f"{args.gguf}: {args.gguf.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
