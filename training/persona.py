"""What a system prompt may ask of the demo model, and how its answers then look.

Knows names, greetings in several languages, capitals and fixed endings. Does not know facts.
"""

import random
from dataclasses import dataclass
from pathlib import Path

from training.grammar import draw_kind
from training.words import any_word, made_up, pick

_PERSONAS = Path(__file__).parent / "data" / "personas.txt"
GREETINGS = {
    "English": "Hello! I am {name}. How can I help you?",
    "German": "Guten Tag! Ich bin {name}. Wie kann ich helfen?",
    "French": "Bonjour ! Je suis {name}. Comment puis-je vous aider ?",
    "Spanish": "¡Hola! Soy {name}. ¿En qué puedo ayudar?",
    "Italian": "Ciao! Sono {name}. Come posso aiutare?",
    "Portuguese": "Olá! Eu sou {name}. Como posso ajudar?",
    "Dutch": "Hallo! Ik ben {name}. Hoe kan ik helpen?",
    "Swedish": "Hej! Jag heter {name}. Hur kan jag hjälpa dig?",
    "Polish": "Cześć! Jestem {name}. Jak mogę pomóc?",
    "Turkish": "Merhaba! Ben {name}. Nasıl yardımcı olabilirim?",
    "Finnish": "Hei! Olen {name}. Miten voin auttaa?",
    "Latin": "Salve! Ego sum {name}. Quid vis?",
}
DEFAULT_NAME = "the demo model"


@dataclass(frozen=True, slots=True)
class Persona:
    """What the system prompt asks for; the empty persona is the plain demo model."""

    system: str | None = None
    name: str | None = None
    language: str = "English"
    upper: bool = False
    ending: str | None = None
    user: str | None = None

    def style(self, text: str) -> str:
        """An answer as this persona writes it."""
        if self.ending is not None:
            text = f"{text} {self.ending}"
        return text.upper() if self.upper else text

    def greeting(self) -> str:
        """How it greets."""
        return self.style(GREETINGS[self.language].format(name=self.name or DEFAULT_NAME))


def draw_persona(rng: random.Random, *, tools: bool = False) -> Persona:
    """Draws a persona; beside tools it never changes how words from a result are written."""
    parts: list[str] = []
    name = language = ending = user = None
    upper = False
    if rng.random() < 0.45:
        name = person_name(rng)
        parts.append(_line(rng, "name", name))
    if rng.random() < 0.3:
        language = rng.choice(list(GREETINGS))
        parts.append(_line(rng, "language", language))
    if not tools and rng.random() < 0.3:
        upper = True
        parts.append(_line(rng, "upper", ""))
    if not tools and rng.random() < 0.12:
        ending = any_word(rng) if rng.random() < 0.7 else pick(rng, "person").split()[-1]
        parts.append(_line(rng, "ending", ending))
    if rng.random() < 0.15:
        user = person_name(rng)
        parts.append(_line(rng, "user", user))
    rng.shuffle(parts)
    if not parts or rng.random() < 0.3:
        parts.insert(rng.choice((0, len(parts))), _line(rng, "plain", ""))
    return Persona(" ".join(parts), name, language or "English", upper, ending, user)


def person_name(rng: random.Random) -> str:
    """A name for an assistant or a user."""
    return (
        made_up(rng).capitalize()
        if rng.random() < 0.6
        else pick(rng, "person").split()[-1].capitalize()
    )


def _line(rng: random.Random, kind: str, value: str) -> str:
    text = draw_kind(rng, _PERSONAS, kind)
    return text.replace("[x]", value).replace("[w]", any_word(rng)).replace("[d]", pick(rng, "day"))
