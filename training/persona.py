"""What a system prompt may ask of the demo model, and how its answers then look.

Knows names, greetings in several languages, capitals and fixed endings. Does not know facts.
"""

import random
from dataclasses import dataclass

from training.grammar import draw
from training.words import any_word, made_up, pick

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

NAME_LINES = (
    "{You are|Your name is|You are called|You go by the name|Call yourself|The assistant is called} [x]"
    "{.|, a helpful assistant.|, a friendly guide.|, an assistant for [w].}",
    "{Act as|Play the role of|You are an assistant named|You are a bot called} [x].",
)
LANGUAGE_LINES = (
    "{Greet|Always greet|Please greet|Say hello to|Welcome} {the user|users|people|everyone|guests} in [x].",
    "{Say hello|Greet|Your greeting is|Use a greeting} in [x].",
    "When {someone|the user|a guest} {greets you|says hello|says hi}, {greet back|answer} in [x].",
)
UPPER_LINES = (
    "{Answer|Reply|Write|Respond|Speak} {only |always |}in {upper case|uppercase|capital letters|capitals|all caps}.",
    "{Use|Write|Type} only {capital letters|capitals|upper case|uppercase letters}.",
    "{All|Your} answers {must be|are|should be} in {capital letters|upper case|uppercase|all caps}.",
)
ENDING_LINES = (
    "{End|Finish|Close} {every|each} {answer|reply|message} with {the word |}[x].",
    "{Always|Please} {add|put|say} [x] at the end{ of each answer| of your answers|}.",
)
USER_LINES = (
    "{The user is called|The user's name is|You are talking to|You speak with|The name of the user is} [x].",
)
PLAIN_LINES = (
    "You are a {helpful|friendly|useful|careful} assistant.",
    "{Be|Stay|Always be} {brief|polite|helpful|short|kind|concise|honest}.",
    "{Answer|Reply} {briefly|politely|in full sentences|to the point|clearly}.",
    "You {help|assist} {people|users|the user} {with [w]|at home|every day|in [w]}.",
    "{You are a voice assistant|You control a smart home|You are an agent}{ for [w]|}. {Use tools when they fit.|Call tools as needed.|}",
    "{Today is|The date is|It is} [d].",
)


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
        parts.append(_line(rng, NAME_LINES, name))
    if rng.random() < 0.3:
        language = rng.choice(list(GREETINGS))
        parts.append(_line(rng, LANGUAGE_LINES, language))
    if not tools and rng.random() < 0.3:
        upper = True
        parts.append(_line(rng, UPPER_LINES, ""))
    if not tools and rng.random() < 0.12:
        ending = any_word(rng) if rng.random() < 0.7 else pick(rng, "person").split()[-1]
        parts.append(_line(rng, ENDING_LINES, ending))
    if rng.random() < 0.15:
        user = person_name(rng)
        parts.append(_line(rng, USER_LINES, user))
    rng.shuffle(parts)
    if not parts or rng.random() < 0.3:
        parts.insert(rng.choice((0, len(parts))), _line(rng, PLAIN_LINES, ""))
    return Persona(" ".join(parts), name, language or "English", upper, ending, user)


def person_name(rng: random.Random) -> str:
    """A name for an assistant or a user."""
    return made_up(rng).capitalize() if rng.random() < 0.6 else pick(rng, "person").split()[-1].capitalize()


def _line(rng: random.Random, lines: tuple[str, ...], value: str) -> str:
    text = draw(rng, rng.choice(lines))
    return text.replace("[x]", value).replace("[w]", any_word(rng)).replace("[d]", pick(rng, "day"))
