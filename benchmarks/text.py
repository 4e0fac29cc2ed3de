"""Text files as token ids, for language_model.py: words as WikiText splits them, or bytes."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

UNKNOWN, END = "<unk>", "<eos>"


class Texts(NamedTuple):
    """Ids in the order of how frequent tokens are in the training text, as adaptive softmax needs them: (T,) int64."""

    train: Tensor
    val: Tensor
    test: Tensor
    vocabulary: int
    unknown_id: int | None

    def unknown(self, part: Tensor) -> float:
        """The share of tokens that are <unk>, in the files or because the training text has them too rarely."""
        return 0.0 if self.unknown_id is None else (part == self.unknown_id).double().mean().item()


def load_text(
    train: list[Path], val: list[Path] | None, test: list[Path], level: str, min_count: int, limit: int | None
) -> Texts:
    """Read all files. The vocabulary is that of the training text alone; without `val`, its last tenth is val.

    Args:
        train: Text files, one after another.
        val: Likewise, or None.
        test: Likewise.
        level: "word" (separated by white space, and <eos> at the end of a line) or "byte".
        min_count: A token that the training text has fewer times becomes <unk>; of bytes none does.
        limit: How many tokens of each text to take; None for all.
    """

    def tokens(paths: list[Path]) -> Iterator:
        return islice(words(paths) if level == "word" else chain.from_iterable(p.read_bytes() for p in paths), limit)

    end = sum(1 for _ in tokens(train)) if val is None else None
    cut = None if end is None else end - end // 10
    counted = Counter(islice(tokens(train), cut))
    if level == "byte":
        kept = sorted(range(256), key=lambda byte: (-counted[byte], byte))
    else:
        number = {token: n for token, n in counted.items() if n >= min_count and token not in (UNKNOWN, END)}
        number[UNKNOWN] = counted.total() - sum(number.values()) - counted[END]
        number[END] = counted[END]
        kept = sorted(number, key=lambda token: (-number[token], token))
    ids = {token: i for i, token in enumerate(kept)}
    unknown_id = ids.get(UNKNOWN) if level == "word" else None
    parts = [islice(tokens(train), cut), islice(tokens(train), cut, None) if val is None else tokens(val), tokens(test)]
    numbers = [array("i", (ids.get(token, unknown_id) for token in part)) for part in parts]
    return Texts(*(torch.frombuffer(part, dtype=torch.int32).long() for part in numbers), len(kept), unknown_id)


def words(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield from line.split()
                yield END
