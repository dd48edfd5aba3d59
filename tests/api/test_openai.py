"""OpenAI's models endpoints, and its own client against the server."""

from __future__ import annotations

import openai
import pytest

from tests.fake_live import TLS, Live


def sdk(live: Live) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{live.client.base_url}/v1",
        api_key="none",
        max_retries=0,
        http_client=openai.DefaultHttpxClient(verify=TLS),
    )


def test_models(live: Live) -> None:
    body = live.client.get("/v1/models").json()
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["a.gguf", "b.gguf", "sub/c.gguf"]


@pytest.mark.parametrize("name", ["a.gguf", "a", "sub/c.gguf", "c"])
def test_one_model(live: Live, name: str) -> None:
    response = live.client.get(f"/v1/models/{name}")
    assert response.status_code == 200
    assert response.json()["id"].endswith(".gguf")


@pytest.mark.parametrize("name", ["nope", "..%2f..%2fetc%2fpasswd", "a%00", "%ff"])
def test_an_unknown_model(live: Live, name: str) -> None:
    response = live.client.get(f"/v1/models/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_the_sdk(live: Live) -> None:
    with sdk(live) as client:
        assert [model.id for model in client.models.list()][0] == "a.gguf"
        answer = client.chat.completions.create(
            model="a.gguf", messages=[{"role": "user", "content": "hello there"}]
        )
        assert answer.choices[0].message.content == "hello there "
        stream = client.chat.completions.create(
            model="a.gguf", messages=[{"role": "user", "content": "hello there"}], stream=True
        )
        text = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(text) == "hello there "


def test_the_sdk_sees_errors(live: Live) -> None:
    with sdk(live) as client:
        with pytest.raises(openai.NotFoundError) as not_found:
            client.chat.completions.create(
                model="nope", messages=[{"role": "user", "content": "x"}]
            )
        assert not_found.value.code == "model_not_found"
        assert not_found.value.request_id and not_found.value.request_id.startswith("req_")
        with pytest.raises(openai.APIError) as late:
            list(
                client.chat.completions.create(
                    model="a", messages=[{"role": "user", "content": "late-fail"}], stream=True
                )
            )
        assert late.value.code == "internal_error"
