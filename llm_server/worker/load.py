"""What serves a model once it is read: context, dialogue, cache; what was left open is settled."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from llm_server import logs
from llm_server.cache.disk import DiskTier, chunk_tokens
from llm_server.cache.fingerprint import fingerprint, model_fingerprint
from llm_server.cache.ledger import Ledger
from llm_server.cache.store import ChunkStore
from llm_server.errors import InsufficientMemory, ModelLoadFailed
from llm_server.llama import log, rope
from llm_server.llama.adapter import LoadedAdapter
from llm_server.llama.context import Context, ContextError
from llm_server.llama.embedding import EmbeddingContext
from llm_server.llama.gpu import built_for_cards, devices
from llm_server.llama.lib import lib, version
from llm_server.llama.model import LoadError, Model
from llm_server.machine import physical_cores
from llm_server.worker.config import PARALLEL, PARALLEL_WHOLE_STATE, LoadConfig, Pooling
from llm_server.worker.embedding import TextPreparer, open_embedding, pooling_of
from llm_server.worker.messages import Asked, Load, Loaded, Told
from llm_server.worker.prepare import Preparer, open_dialogue
from llm_server.worker.preparing import Work
from llm_server.worker.weights import FEWER_LAYERS

logger = logging.getLogger(__name__)

MAX_TEMPLATE = 1 << 20
"""Characters of a chat template from a file; no published one comes near."""
_TABLES = 330
"""Bytes a token of the vocabulary will take in llguidance's tables and Python's. Measured."""
_REORDERED = ("CPU_REPACK", "AMX", "CPU_KLEIDIAI", "CPU_RISCV64_SPACEMIT")
"""llama.cpp's names for buffers of weights in the order that a processor's kernels want."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A loaded model with all that serves it, and what the API process is told of it."""

    context: Context | EmbeddingContext
    prepare: Callable[[int, Asked], Work | Told]
    disk: DiskTier | None
    loaded: Loaded
    draft_max: int
    finish: Callable[[], None]
    """What is left to do once nothing else is; requests that need it sooner do it themselves."""


def make_ready(command: Load, model: Model, digest: bytes) -> Ready:
    """All that serves `model`, whose content `digest` stands for (`model_fingerprint`).

    Raises:
        ModelLoadFailed: an adapter, a template or a setting does not fit it.
        TemplateError: its chat template cannot be compiled.
        InsufficientMemory: the context does not fit into the memory.
    """
    config = command.config
    template = read_template(command)
    adapters = load_adapters(command, model)
    if (pooling := pooling_of(model, config)) is not None:
        return load_embedding(model, pooling, config, adapters)
    with ThreadPoolExecutor(1, "dialogue") as pool:
        # One is native code, the other Python.
        opening = pool.submit(open_dialogue, model, template)
        context = open_context(model, config, adapters, command.n_idle, command.smaller_n_ctx)
    dialogue = opening.result()
    # Before the first computation, which starts threads; the log's must have nothing to do, and
    # drivers of graphics cards have threads that nobody can ask.
    given_back = logs.settle() and not devices()
    if given_back:
        context.give_back_zeros()
    context.warm_up()
    print_ = state_fingerprint(digest, command, context)
    loaded = Loaded(
        n_ctx=context.n_ctx,
        parallel=len(context.running),
        description=model.description,
        fingerprint=system_fingerprint(print_, context, config),
        memory_bytes=memory_bytes(model, given_back, _TABLES * model.vocab.n_tokens),
        n_gpu_layers=on_cards(model, config.n_gpu_layers),
        max_gpu_layers=most_on_cards(model),
        flash_attn=flash_attn(config),
    )
    logger.info("loaded %s with %d cells", model.description, context.n_ctx)

    def finish() -> None:
        dialogue.warm()
        give_back_memory()

    prepare = Preparer(context, dialogue).prepare
    disk = open_cache(command, context, print_)
    return Ready(context, prepare, disk, loaded, config.draft_max, finish)


def on_cards(model: Model, asked: int | Literal["auto"]) -> int:
    """How many layers `asked` comes to here, with -1 for all; the output layer is one of them."""
    most = most_on_cards(model) or 0
    return min(asked, most) if isinstance(asked, int) and asked >= 0 else most


def most_on_cards(model: Model) -> int | None:
    """What -1 comes to, as `Loaded` has it."""
    if devices():
        return model.n_layer + 1
    return None if built_for_cards() else 0


def flash_attn(config: LoadConfig) -> Literal["on", "off"]:
    """How the context computes attention, as told or as llama.cpp has found it can."""
    if config.flash_attn != "auto":
        return config.flash_attn
    return "on" if log.flash_attention() else "off"


def load_adapters(command: Load, model: Model) -> list[LoadedAdapter]:
    """The LoRA adapters of the configuration.

    Raises:
        ModelLoadFailed: one does not belong to the model.
    """
    adapters = []
    for asked, path in zip(command.config.lora, command.adapter_paths, strict=True):
        try:
            adapters.append(LoadedAdapter(model, path, asked.scale))
        except LoadError as error:
            raise ModelLoadFailed(
                f"The adapter {asked.name} cannot be used with this model: {error}.",
                param="load_model_configs.lora",
            ) from None
    return adapters


def read_template(command: Load) -> str | None:
    """The chat template that replaces the model's own, if there is to be one.

    Raises:
        ModelLoadFailed: the file is no text, or too long.
    """
    if command.template_path is None:
        return None
    try:
        with open(command.template_path, encoding="utf-8") as file:
            source = file.read(MAX_TEMPLATE + 1)
    except (OSError, UnicodeDecodeError):
        source = None
    if source is None or len(source) > MAX_TEMPLATE:
        raise ModelLoadFailed(
            f"{command.config.chat_template} is no text of at most {MAX_TEMPLATE >> 20} MB.",
            param="load_model_configs.chat_template",
        )
    return source


def load_embedding(
    model: Model, pooling: Pooling, config: LoadConfig, adapters: Sequence[LoadedAdapter]
) -> Ready:
    """What serves a model that makes vectors or scores: no dialogue, no prompt cache.

    Raises:
        InsufficientMemory: the memory for computing could not be had.
    """
    context = open_embedding(model, pooling, config, adapters)
    loaded = Loaded(
        n_ctx=context.n_batch,
        parallel=context.max_texts,
        description=model.description,
        pooling=pooling,
        memory_bytes=memory_bytes(model, given_back=False),
        n_gpu_layers=on_cards(model, config.n_gpu_layers),
        max_gpu_layers=most_on_cards(model),
        flash_attn=flash_attn(config),
    )
    logger.info("loaded %s for texts, pooling %s", model.description, pooling)
    prepare = TextPreparer(context, pooling).prepare
    return Ready(context, prepare, None, loaded, 0, give_back_memory)


def give_back_memory() -> None:
    """Return what loading needed and freed to the system: 17 MB with 150,000 tokens.

    glibc keeps it otherwise; other C libraries have no such call.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def open_context(
    model: Model,
    config: LoadConfig,
    adapters: Sequence[LoadedAdapter] = (),
    n_idle: int = 0,
    smaller_n_ctx: Sequence[int] = (),
) -> Context:
    """A context for `model`, with what `config` leaves open settled; the rest is as in `Load`.

    Raises:
        InsufficientMemory: it does not fit into the memory.
        ModelLoadFailed: llama.cpp refuses the settings.
    """
    n_ctx = config.n_ctx or model.n_ctx_train
    if n_ctx > model.n_ctx_train:
        logger.warning("n_ctx %d is more than the model was trained for", n_ctx)
    parallel = config.parallel or (PARALLEL_WHOLE_STATE if model.keeps_whole_state else PARALLEL)
    parallel = min(parallel, config.n_batch, n_ctx)
    config = msgspec.structs.replace(config, n_threads=config.n_threads or physical_cores())
    for cells in (n_ctx, *smaller_n_ctx):
        try:
            return Context(model, config, cells, parallel, adapters, n_idle=n_idle)
        except ContextError as error:
            if error.reason:
                raise _refused(error.reason) from None
        log.forget_context()
        logger.warning("the memory does not hold a context of %d tokens", cells)
    hint = f" {FEWER_LAYERS}" if config.n_gpu_layers else ""
    raise InsufficientMemory(
        f"A context of {cells} tokens does not fit into the memory. Ask for a smaller n_ctx.{hint}",
        param="load_model_configs.n_ctx",
    )


def _refused(reason: str) -> ModelLoadFailed:
    """Why llama.cpp makes no context of the settings, and what to change where that is known."""
    message, param = f"llama.cpp cannot load this model as asked for: {reason}.", ""
    for name, subject in (("type_k", "K cache"), ("type_v", "V cache")):
        if subject in reason:
            message, param = f"{message} Set {name} (or kv_type) to f16.", f".{name}"
    return ModelLoadFailed(message, param=f"load_model_configs{param}")


def state_fingerprint(digest: bytes, command: Load, context: Context) -> bytes:
    """What makes KV memory of this worker compatible with that of another."""
    model = context.model
    arch = model.metadata("general.architecture")
    original = int(model.metadata(f"{arch}.rope.scaling.original_context_length") or 0)
    return fingerprint(
        digest,
        {
            "llama.cpp": version(),
            "kv": f"{command.config.type_k} {command.config.type_v}",
            # Without flash attention values are kept the other way round.
            "flash_attn": "auto" if flash_attn(command.config) == "on" else "off",
            "gpu": bool(lib.llama_supports_gpu_offload()) and command.config.n_gpu_layers != 0,
            # Ranges that were saved before cells of a sliding window had two owners may have holes.
            "swa_full": 2 if context.model.n_swa else True,
            # LongRoPE picks its factors by the length of the context.
            "long": bool(original) and context.n_ctx > original,
            **rope.overrides(command.config),
            **{
                f"lora.{i}": f"{model_fingerprint(path).hex()} {asked.scale}"
                for i, (asked, path) in enumerate(
                    zip(command.config.lora, command.adapter_paths, strict=True)
                )
            },
        },
    )


def system_fingerprint(print_: bytes, context: Context, config: LoadConfig) -> str:
    """OpenAI's `system_fingerprint`: the same for the same model in the same configuration."""
    settings = msgspec.json.encode([context.n_ctx, len(context.running), config])
    return "fp_" + hashlib.sha256(print_ + settings).hexdigest()[:10]


def open_cache(command: Load, context: Context, print_: bytes) -> DiskTier | None:
    """The prompt cache on disk for this model, if there is to be one."""
    if command.cache is None:
        return None
    model, folder = context.model, command.cache.folder
    writes, budget = command.cache.write != "off", command.cache.size_bytes
    store = ChunkStore(folder, print_, budget)
    if writes and (used := store.stats().used_bytes) > budget:
        logger.warning(
            "The prompt cache holds %.1f MB, and may take %.1f MB: what was not used lately goes.",
            used / 1e6,
            budget / 1e6,
        )
    return DiskTier(
        store,
        print_,
        whole_state=context.whole_state,
        policy=command.cache.write,
        size=chunk_tokens(model.kv_bytes_per_token(), model.n_swa),
        ledger=Ledger(folder, print_, command.cache.model) if writes else None,
    )


def memory_bytes(model: Model, given_back: bool, to_come: int = 0) -> int:
    """What this process takes of the machine's memory, or will; 0 where the system does not say.

    What is `to_come`, its own pages, the buffer for computing that nothing has touched so far, the
    cells if they were zeroed and `given_back`, and the weights that are read from the pages of the
    file. Weights that llama.cpp keeps in an order of its own beside the file count once: the system
    may take the file's pages back.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    own = sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))
    buffers = log.buffers()
    mapped = sum(size for (where, _), size in buffers.items() if where.endswith("_Mapped"))
    kinds = ("KV", "RS", "compute") if given_back else ("compute",)
    untouched = sum(buffers["CPU", kind] for kind in kinds)
    reordered = sum(buffers[where, "model"] for where in _REORDERED)
    weights = max(0, min(mapped, model.size_bytes) - reordered)
    return to_come + own + untouched + weights
