"""instructor: answers of the caller's own type, in each of its modes."""

from __future__ import annotations

import pytest


def test_a_typed_answer(base_url: str) -> None:
    # docs: instructor
    from typing import Literal

    import instructor
    from openai import OpenAI
    from pydantic import BaseModel

    class Appointment(BaseModel, extra="forbid"):
        day: Literal["today", "tomorrow"]
        confirmed: bool

    client = instructor.from_openai(
        OpenAI(base_url=base_url, api_key="none"), mode=instructor.Mode.JSON_SCHEMA
    )
    appointment = client.chat.completions.create(
        model="demo.gguf",
        messages=[{"role": "user", "content": "who are you?"}],
        response_model=Appointment,
        temperature=0,
    )
    print(appointment)
    # end
    assert isinstance(appointment, Appointment)


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_each_mode(base_url: str, mode: str) -> None:
    from typing import Literal

    import instructor
    from openai import OpenAI
    from pydantic import BaseModel

    class Light(BaseModel, extra="forbid"):
        room: Literal["bedroom", "kitchen"]
        on: bool

    with OpenAI(base_url=base_url, api_key="none") as openai:
        client = instructor.from_openai(openai, mode=instructor.Mode[mode])
        light = client.chat.completions.create(
            model="demo.gguf",
            messages=[{"role": "user", "content": "please switch off the bedroom light"}],
            response_model=Light,
            temperature=0,
            max_retries=0,
        )
    assert isinstance(light, Light)
