"""llama-index: its client for servers that are like OpenAI's."""

from __future__ import annotations

import asyncio


def test_chat_and_stream(base_url: str) -> None:
    # docs: llama-index
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    model = OpenAILike(
        model="demo.gguf",
        api_base=base_url,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=4096,
        temperature=0,
    )
    print(model.chat([ChatMessage("who are you?")]).message.content)
    for chunk in model.stream_chat([ChatMessage("Where do I put my models?")]):
        print(chunk.delta, end="", flush=True)
    # end
    assert "demo model" in (model.chat([ChatMessage("who are you?")]).message.content or "")
    deltas = model.stream_chat([ChatMessage("Where do I put my models?")])
    assert "GGUF" in "".join(chunk.delta or "" for chunk in deltas)
    assert "GGUF" in str(asyncio.run(model.acomplete("Where do I put my models?")))


def test_tools(base_url: str) -> None:
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai_like import OpenAILike

    minutes_set = []

    def set_timer(minutes: int) -> str:
        """Start a timer"""
        minutes_set.append(minutes)
        return "started"

    model = OpenAILike(
        model="demo.gguf",
        api_base=base_url,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=4096,
        temperature=0,
    )
    tools = [FunctionTool.from_defaults(set_timer)]
    answer = model.predict_and_call(tools, "please set a timer for 12 minutes")
    assert minutes_set == [12]
    assert answer.response == "started"


def test_embeddings(base_url: str) -> None:
    # docs: llama-index embeddings
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    model = OpenAILikeEmbedding(model_name="bert.gguf", api_base=base_url, api_key="none")
    question = model.get_query_embedding("the time")
    documents = model.get_text_embedding_batch(["the time", "a long day"])
    # end
    assert sum(a * b for a, b in zip(question, documents[0], strict=True)) > 0.9999
    assert sum(a * b for a, b in zip(question, documents[1], strict=True)) < 0.9999
    assert len(asyncio.run(model.aget_text_embedding("a long day"))) == len(question)
