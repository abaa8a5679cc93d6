"""The world behind a generated competition: topics, entities, words, tags and frame directions.

A video has a topic, three entities and a style. Who can see what:

    topic           title, ASR, tags, frames
    shared entity   title, ASR, tags, frames
    spoken entity   title, ASR, tags           (not in the frames)
    shown entity    tags, frames               (not in the text)
    style           frames

Each entity has several names, words that often stand beside them (what masked language modelling can learn),
a tag whatever its name (what tag classification can learn), and a direction in frame space. Frames of one
video share topic, entities, style and a background that means nothing, and drift slowly. How alike two videos
are depends on the factors that they share (`similarity`): neither text nor frames tell it alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LATENT = np.dtype([("topic", "i4"), ("shared", "i4"), ("spoken", "i4"), ("shown", "i4"), ("style", "f4", (8,))])
Latents = npt.NDArray[np.void]
FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

MAX_FRAMES = 32
_CODE_DIM = 96  # of the space in which topics and entities have their directions
_SOURCES = 4  # components of the code that one component of a frame feature is made of
_ATTRIBUTES = 5  # words that stand beside an entity's word
_TOPIC_WORDS = 30
_FILLERS = 200
_PUNCTUATION = "\uff0c\uff01\uff1f #012"  # full-width comma, exclamation and question mark first
_NAMES = 3  # of one entity
_BACKGROUND_DIM = 16  # of the part of the code space where the background of a video lies
_ENTITY_PARTS = ("shared", "spoken", "shown")


class World:
    """Everything that videos have in common; a pure function of its arguments.

    Args:
        seed: Of the whole competition.
        num_tags: Length of the tag list; a quarter as many tags again exist outside it.
        frame_dim: Width of a frame feature.
    """

    def __init__(self, *, seed: int, num_tags: int, frame_dim: int) -> None:
        """Draw words, directions and tags."""
        self.seed = seed
        self.frame_dim = frame_dim
        rng = np.random.default_rng([seed, 0])
        self.num_first = int(np.clip(round(num_tags**0.5 / 5), 2, 20))
        self.num_second = int(np.clip(round(0.8 * num_tags**0.25), 2, 8))
        self.num_topics = self.num_first * self.num_second
        num_universe = max(num_tags + 1, round(1.25 * num_tags))
        wanted = num_universe - self.num_first - self.num_topics
        self.per_topic = max(6, -(-wanted // self.num_topics))
        self.num_entities = self.per_topic * self.num_topics
        weights = 1 / (np.arange(self.per_topic) + 3.0)
        self._popularity = np.cumsum(weights / weights.sum())
        self._draw_words(rng)
        self._draw_directions(rng)
        self._draw_tags(rng, num_tags)

    def _draw_words(self, rng: np.random.Generator) -> None:
        # The 3,755 common characters of GB 2312, level 1.
        characters = np.array(
            [
                bytes((row, cell)).decode("gb2312")
                for row in range(0xB0, 0xD8)
                for cell in range(0xA1, 0xFF if row < 0xD7 else 0xFA)
            ]
        )
        seen: set[str] = set()

        def words(count: int, shares: tuple[float, float, float]) -> npt.NDArray[np.object_]:
            result: list[str] = []
            while len(result) < count:
                length = 1 + int(rng.choice(3, p=shares))
                word = "".join(characters[rng.integers(len(characters), size=length)])
                if word not in seen:
                    seen.add(word)
                    result.append(word)
            return np.array(result, dtype=object)

        self._filler_words = np.concatenate(
            [words(_FILLERS - len(_PUNCTUATION), (0.5, 0.4, 0.1)), np.array(list(_PUNCTUATION), dtype=object)]
        )
        self._topic_words = words(self.num_topics * _TOPIC_WORDS, (0.05, 0.75, 0.2)).reshape(self.num_topics, -1)
        self._entity_words = words(self.num_entities * _NAMES, (0.02, 0.53, 0.45)).reshape(-1, _NAMES)
        # An entity's attributes are words of its topic, so that they are shared with its neighbours.
        picks = rng.random((self.num_entities, _TOPIC_WORDS)).argsort(axis=1)[:, :_ATTRIBUTES]
        self._attributes = self._topic_words[np.arange(self.num_entities)[:, None] // self.per_topic, picks]

    def _draw_directions(self, rng: np.random.Generator) -> None:
        first = _unit_rows(rng, self.num_first)
        second = _unit_rows(rng, self.num_topics)
        self._topic_codes = 0.8 * np.repeat(first, self.num_second, axis=0) + 0.6 * second
        self._entity_codes = _unit_rows(rng, self.num_entities)
        self._style_codes = _unit_rows(rng, 8) / np.float32(8**0.5)
        self._background_codes = _unit_rows(rng, _BACKGROUND_DIM) * np.float32(0.6)
        self._sources = rng.integers(_CODE_DIM, size=(_SOURCES, self.frame_dim))
        self._gains = rng.standard_normal((_SOURCES, self.frame_dim), dtype=np.float32) * np.float32(5)

    def _draw_tags(self, rng: np.random.Generator, num_tags: int) -> None:
        self._entity_tags_at = self.num_first + self.num_topics
        total = self._entity_tags_at + self.num_entities
        self._tags = rng.permutation(30 * total)[:total] + 1
        # The list holds the most frequent tags: all topics, then the entities by their popularity.
        rank = np.arange(self.num_entities) % self.per_topic
        by_popularity = np.argsort(rank, kind="stable") + self._entity_tags_at
        order = np.concatenate([np.arange(self._entity_tags_at), by_popularity])
        self.tag_list: list[int] = self._tags[order[:num_tags]].tolist()

    def draw(self, rng: np.random.Generator, count: int) -> Latents:
        """Latent factors of `count` unrelated videos."""
        latents = np.zeros(count, dtype=LATENT)
        latents["topic"] = rng.integers(self.num_topics, size=count)
        for part in _ENTITY_PARTS:
            latents[part] = self._draw_entities(rng, latents["topic"])
        latents["style"] = rng.standard_normal((count, 8), dtype=np.float32)
        return latents

    def derive(self, rng: np.random.Generator, parents: Latents) -> Latents:
        """Latent factors of one relative of each video, from nearly the same to unrelated."""
        count = len(parents)
        closeness = rng.random(count)
        # What only text knows and what only frames know goes along with the rest now and then.
        closeness_of = {"shared": closeness}
        for part in ("spoken", "shown"):
            closeness_of[part] = np.where(rng.random(count) < 0.25, closeness, rng.random(count))
        fresh = self.draw(rng, count)
        latents = parents.copy()
        moved = rng.random(count) > closeness**0.4
        latents["topic"][moved] = fresh["topic"][moved]
        for part in _ENTITY_PARTS:
            entities = self._draw_entities(rng, latents["topic"])
            changed = moved | (rng.random(count) > closeness_of[part])
            latents[part][changed] = entities[changed]
        rho = closeness_of["shown"].astype(np.float32)[:, None]
        latents["style"] = rho * parents["style"] + np.sqrt(1 - rho**2) * fresh["style"]
        return latents

    def _draw_entities(self, rng: np.random.Generator, topics: IntArray) -> IntArray:
        ranks = np.searchsorted(self._popularity, rng.random(len(topics))).clip(max=self.per_topic - 1)
        return (topics * self.per_topic + ranks).astype(np.int32)

    def similarity(self, left: Latents, right: Latents) -> npt.NDArray[np.float64]:
        """Latent similarity of videos, pair by pair, in [-0.1, 1]; a pair's score is monotone in it."""
        first = left["topic"] // self.num_second == right["topic"] // self.num_second
        topic = left["topic"] == right["topic"]
        style = (left["style"] * right["style"]).sum(axis=1, dtype=np.float64)
        style /= np.linalg.norm(left["style"], axis=1) * np.linalg.norm(right["style"], axis=1)
        shared, spoken, shown = (left[part] == right[part] for part in _ENTITY_PARTS)
        return 0.09 * first + 0.09 * topic + 0.2 * shared + 0.28 * spoken + 0.24 * shown + 0.1 * style

    def category(self, latent: np.void) -> int:
        """`first level * 100 + second level`, both from 1."""
        first, second = divmod(int(latent["topic"]), self.num_second)
        return (first + 1) * 100 + second + 1

    def tags(self, rng: np.random.Generator, latent: np.void) -> list[int]:
        """Tags: entities and topic, some left out, some by related entities, a few by chance."""
        count = max(1, int(rng.negative_binomial(7, 7 / (7 + 4.7))))
        if rng.random() < 0.001:
            count = int(rng.integers(13, 30))
        topic = int(latent["topic"])
        core = [self._entity_tags_at + int(latent[part]) for part in _ENTITY_PARTS]
        core += [self.num_first + topic, topic // self.num_second]
        keep = rng.random(5) < (0.8, 0.8, 0.8, 0.8, 0.6)
        chosen = [core[index] for index in rng.permutation(5) if keep[index]]
        if rng.random() < 0.1:
            chosen.insert(0, int(rng.integers(len(self._tags))))
        chosen = chosen[:count]
        while len(chosen) < count:
            related = self._draw_entities(rng, np.full(4 * count, topic, dtype=np.int32))
            chosen += [self._entity_tags_at + int(entity) for entity in related]
            chosen += rng.integers(len(self._tags), size=count).tolist()
            chosen = list(dict.fromkeys(chosen))[:count]
        return [int(tag) for tag in self._tags[list(dict.fromkeys(chosen))]]

    def title(self, rng: np.random.Generator, latent: np.void) -> str:
        """A title: the words of the two entities that text knows, their attributes, topic words, fillers."""
        length = int(np.clip(round(rng.normal(18.7, 6.6)), 1, 60))
        if rng.random() < 0.002:
            length = int(rng.integers(35, 61))
        words: list[str] = []
        for part in ("shared", "spoken"):
            if rng.random() < 0.92:
                words.append(self._entity_words[latent[part], rng.integers(_NAMES)])
            picks = rng.integers(_ATTRIBUTES, size=int(rng.integers(3)))
            words += self._attributes[latent[part]][picks].tolist()
        if rng.random() < 0.12:
            words.append(self._entity_words[rng.integers(self.num_entities), 0])
        words = [words[index] for index in rng.permutation(len(words))]
        words += self._background(rng, latent, length)
        return "".join(words)[:length]

    def asr(self, rng: np.random.Generator, latent: np.void) -> str:
        """Speech: often none; otherwise the same sources as the title, thinner, with a long tail."""
        if rng.random() < 0.2:
            return ""
        length = int(np.clip(round(np.exp(rng.normal(3.46, 0.95))), 1, 3373))
        words = self._background(rng, latent, length)
        for part in ("shared", "spoken"):
            heard = np.flatnonzero(rng.random(len(words)) < 0.12)
            spoken = self._attributes[latent[part]][rng.integers(_ATTRIBUTES, size=len(heard))]
            spoken[rng.random(len(heard)) < 0.35] = self._entity_words[latent[part], rng.integers(_NAMES)]
            for index, word in zip(heard.tolist(), spoken.tolist(), strict=True):
                words[index] = word
        return "".join(words)[:length]

    def _background(self, rng: np.random.Generator, latent: np.void, length: int) -> list[str]:
        """At least `length` characters' worth of words: of the topic, of another topic, fillers."""
        kinds = rng.random(length)
        topics = np.where(kinds < 0.35, latent["topic"], rng.integers(self.num_topics))
        words = self._topic_words[topics, rng.integers(_TOPIC_WORDS, size=length)]
        fillers = self._filler_words[rng.integers(_FILLERS, size=length)]
        return np.where(kinds < 0.55, words, fillers).tolist()

    def frames(self, rng: np.random.Generator, latent: np.void) -> npt.NDArray[np.float16]:
        """Frame features, float16 `[n, D]`, not negative, 1 <= n <= 32."""
        count = int(np.clip(round(rng.normal(17, 6.5)), 1, MAX_FRAMES))
        code = self._topic_codes[latent["topic"]] + (latent["style"][:, None] * self._style_codes).sum(axis=0)
        background = rng.standard_normal((_BACKGROUND_DIM, 1), dtype=np.float32)
        code = code + (background * self._background_codes).sum(axis=0)
        drift = rng.standard_normal(_CODE_DIM, dtype=np.float32) / np.float32(_CODE_DIM**0.5)
        when = np.linspace(-0.5, 0.5, count, dtype=np.float32) if count > 1 else np.zeros(1, dtype=np.float32)
        codes = code + when[:, None] * drift
        for part in ("shared", "shown"):
            visible = (rng.random(count) < 0.7).astype(np.float32)
            codes += visible[:, None] * self._entity_codes[latent[part]]
        codes += 0.1 * rng.standard_normal((count, _CODE_DIM), dtype=np.float32)
        # A sparse projection: the bits of a matrix product would depend on the machine and its threads.
        values = sum(codes[:, source] * gain for source, gain in zip(self._sources, self._gains, strict=True))
        values += rng.standard_normal((count, self.frame_dim), dtype=np.float32)
        # What a pooled layer behind a rectifier gives: small, not negative, many near zero.
        return (np.maximum(values, 0) * np.float32(0.25)).astype("<f2")


def _unit_rows(rng: np.random.Generator, count: int) -> FloatArray:
    rows = rng.standard_normal((count, _CODE_DIM), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
