"""langchain-openai: invoke, stream, tools and structured answers."""

from __future__ import annotations


def test_invoke_and_stream(base_url: str) -> None:
    # docs: langchain
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="demo.gguf", base_url=base_url, api_key="none", temperature=0)
    print(model.invoke("who are you?").content)
    for chunk in model.stream("Where do I put my models?"):
        print(chunk.content, end="", flush=True)
    # end
    answer = model.invoke([("system", "Answer in upper case."), ("human", "who are you?")])
    assert str(answer.content).isupper()
    assert answer.usage_metadata is not None and answer.usage_metadata["input_tokens"] > 0
    chunks = list(model.stream("Where do I put my models?", stream_usage=True))
    assert "GGUF" in "".join(str(chunk.content) for chunk in chunks)
    assert sum(c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata) > 0


def test_tools(base_url: str) -> None:
    # docs: langchain tools
    from langchain_core.messages import HumanMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def set_timer(minutes: int) -> str:
        """Start a timer"""
        return f'{{"status": "started", "minutes": {minutes}}}'

    model = ChatOpenAI(model="demo.gguf", base_url=base_url, api_key="none", temperature=0)
    with_tools = model.bind_tools([set_timer])
    messages = [HumanMessage("please set a timer for 12 minutes")]
    answer = with_tools.invoke(messages)
    results = [set_timer.invoke(call) for call in answer.tool_calls]
    final = with_tools.invoke([*messages, answer, *results])
    print(final.content)
    # end
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [
        ("set_timer", {"minutes": 12})
    ]
    assert final.content and not final.tool_calls
    streamed = None
    for chunk in with_tools.stream(messages):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert [call["args"] for call in streamed.tool_calls] == [{"minutes": 12}]
    forced = model.bind_tools([set_timer], tool_choice="set_timer").invoke("who are you?")
    assert [call["name"] for call in forced.tool_calls] == ["set_timer"]


def test_structured_output(base_url: str) -> None:
    # docs: langchain structured output
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Joke(BaseModel):
        setup: str
        rating: int

    model = ChatOpenAI(model="demo.gguf", base_url=base_url, api_key="none", temperature=0)
    joke = model.with_structured_output(Joke).invoke("who are you?")
    print(joke)
    # end
    assert isinstance(joke, Joke)
    for method in ("function_calling", "json_schema"):
        other = model.with_structured_output(Joke, method=method)
        assert isinstance(other.invoke("who are you?"), Joke)


def test_the_responses_api(base_url: str) -> None:
    from langchain_core.messages import HumanMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def set_timer(minutes: int) -> str:
        """Start a timer"""
        return '{"status": "started"}'

    model = ChatOpenAI(
        model="demo.gguf",
        base_url=base_url,
        api_key="none",
        temperature=0,
        use_responses_api=True,
    )
    assert "demo model" in model.invoke("who are you?").text
    streamed = "".join(chunk.text for chunk in model.stream("Where do I put my models?"))
    assert "GGUF" in streamed
    with_tools = model.bind_tools([set_timer])
    asked = [HumanMessage("please set a timer for 12 minutes")]
    answer = with_tools.invoke(asked)
    assert [call["args"] for call in answer.tool_calls] == [{"minutes": 12}]
    results = [set_timer.invoke(call) for call in answer.tool_calls]
    assert with_tools.invoke([*asked, answer, *results]).text


def test_embeddings(base_url: str) -> None:
    # docs: langchain embeddings
    from langchain_openai import OpenAIEmbeddings

    model = OpenAIEmbeddings(
        model="bert.gguf",
        base_url=base_url,
        api_key="none",
        check_embedding_ctx_length=False,  # or it sends the tokens of OpenAI's models
    )
    question = model.embed_query("the time")
    documents = model.embed_documents(["the time", "a long day"])
    # end
    assert len(documents) == 2
    assert sum(a * b for a, b in zip(question, documents[0], strict=True)) > 0.9999
    assert sum(a * b for a, b in zip(question, documents[1], strict=True)) < 0.9999
