"""Synthetic text to train on: sentences of a small grammar of English and Japanese, drawn from a seed."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from flopcast.files import write_atomically

ENGLISH = (
    ("the engineer", "a planner", "the network", "every node", "one rank", "the optimizer", "a scheduler"),
    ("measures", "splits", "gathers", "reduces", "predicts", "repeats", "waits for"),
    ("the gradient", "a layer", "its memory", "the forecast", "two copies", "the whole model", "a message"),
    ("today", "in every step", "without delay", "between nodes", "at night", "before the next one"),
)
JAPANESE = (
    ("技術者は", "計画者は", "通信網は", "各ノードは", "最適化器は", "学習は"),
    ("今日も", "毎回", "静かに", "ノードの間で", "次の手順の前に", "夜に"),
    ("勾配を", "層を", "記憶を", "予測を", "模型全体を", "文章を"),
    ("測る。", "分ける。", "集める。", "まとめる。", "繰り返す。", "待つ。"),
)
SENTENCES = (4, 12)  # of a document, fewest and most


def write_sources(folder: Path, num_documents: int, seed: int) -> list[dict[str, object]]:
    """Write both languages as .jsonl under ``folder``; the ``data.sources`` of the settings, in the report's shares."""
    languages = (("english", 0.877, ENGLISH, " ", "."), ("japanese", 0.123, JAPANESE, "", ""))
    sources: list[dict[str, object]] = []
    for name, weight, grammar, space, stop in languages:
        draw = random.Random(f"{seed} {name}")  # noqa: S311
        path = folder / f"{name}.jsonl"
        lines = (json.dumps({"text": text}) for text in _documents(draw, grammar, space, stop, num_documents))
        write_atomically(path, "\n".join(lines).encode())
        sources.append({"name": name, "weight": weight, "path": str(path)})
    return sources


def _documents(
    draw: random.Random, grammar: tuple[tuple[str, ...], ...], space: str, stop: str, number: int
) -> Iterator[str]:
    def pick(words: tuple[str, ...]) -> str:
        # Squared, so that some words are common and some rare; random() alone is the same in every Python.
        return words[int(draw.random() ** 2 * len(words))]

    for _ in range(number):
        sentences = SENTENCES[0] + int(draw.random() * (SENTENCES[1] - SENTENCES[0] + 1))
        yield "\n".join(space.join(pick(words) for words in grammar) + stop for _ in range(sentences))
