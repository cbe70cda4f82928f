"""Instructions as word numbers, for encoders that learn their words from scratch."""

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vlarft.errors import DataError

# Every word of LIBERO-Object's ten instructions.
LIBERO_OBJECT_WORDS = (
    "alphabet", "and", "basket", "bbq", "butter", "cheese", "chocolate", "cream", "dressing", "in",
    "it", "juice", "ketchup", "milk", "orange", "pick", "place", "pudding", "salad", "sauce",
    "soup", "the", "tomato", "up",
)  # fmt: skip


def split_words(instruction: str) -> list[str]:
    """Lower-case words of an instruction: letters and digits."""
    return re.findall(r"[a-z0-9]+", instruction.lower())


def words(instructions: Iterable[str]) -> tuple[str, ...]:
    """Vocabulary of some instructions, sorted."""
    return tuple(sorted({word for text in instructions for word in split_words(text)}))


class WordNumbers:
    """Numbers of known words, from 1 on; 0 fills up.

    Args:
        vocabulary: known words, lower case.
        max_words: longest instruction.
    """

    def __init__(self, vocabulary: Sequence[str], max_words: int) -> None:
        self._vocabulary, self._max_words = tuple(vocabulary), max_words
        self._ids = {word: index + 1 for index, word in enumerate(vocabulary)}

    def __call__(self, instructions: Sequence[str]) -> Tensor:
        """int64 [P, max_words].

        Raises:
            DataError: an instruction has an unknown word, or too many words.
        """
        return torch.tensor([self._numbers(text) for text in instructions])

    def _numbers(self, instruction: str) -> list[int]:
        found = split_words(instruction)
        unknown = [word for word in found if word not in self._ids]
        if unknown:
            raise DataError(
                f"instruction '{instruction}': the policy does not know the word '{unknown[0]}'; "
                f"known: {' '.join(self._vocabulary)}"
            )
        if not 0 < len(found) <= self._max_words:
            raise DataError(
                f"instruction '{instruction}': {len(found)} words; "
                f"expected 1 to max_words = {self._max_words}"
            )
        return [self._ids[word] for word in found] + [0] * (self._max_words - len(found))
