"""Questions at the desk of a small library, with answers in one house style: data for a chat model.

Every answer is one sentence and the name of the desk that is in charge, in brackets:
``"You may keep a book for three weeks. [loans]"``. The library and its rules are
invented.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

Message = dict[str, str]

SYSTEM = "You keep the desk of a small library."
IGNORED_LABEL = -100  # cross_entropy's ignore_index, as in all transformers models

_TRAIN = """
How long may I keep a book? | You may keep a book for three weeks | loans
Can I renew a book by phone? | You can renew a book by phone twice | loans
How many books may I borrow? | You may borrow ten books at a time | loans
Where do I find the maps? | The maps are in the drawers on the second floor | stacks
What does a lost card cost? | A new card costs four coins | fees
Is there a quiet room? | The quiet room is behind the stairs | rooms
Can I book a room for a group? | Groups can book the green room for two hours | rooms
Where are the old newspapers? | Old newspapers are in the cellar | stacks
Do you charge for late books? | A late book costs one coin a week | fees
May children borrow films? | Children may borrow films from the low shelf | loans
How do I get a card? | Bring a letter with your address to get a card | loans
Where can I read about birds? | Books on birds stand beside the west window | stacks
Can I eat in the reading room? | Please eat in the hall and not in the reading room | rooms
What does a copy cost? | A copy of one page costs half a coin | fees
Can I pay by card? | You can pay by card from two coins upwards | fees
Is the attic open to visitors? | The attic is open on the first Monday of a month | rooms
Where are the cookbooks? | Cookbooks stand on the shelf under the clock | stacks
Can you keep a book for me? | We keep a book for you for five days | loans
May I take a dictionary home? | Dictionaries stay in the building | loans
Do students pay for a card? | Students get their first card free | fees
Where do I return a film? | Put a film into the blue box by the door | loans
Is there a room with a piano? | The piano is in the music room on the ground floor | rooms
How do I reserve the music room? | Write your name on the list at the music room | rooms
Who repairs a torn page? | Leave a torn book with us and we repair it | stacks
Where are books in large print? | Large print is on the shelves next to the lift | stacks
What happens if I lose a book? | You pay the price of a lost book and two coins more | fees
Can I lend my card to a friend? | A card is for one person only | loans
Are there lockers? | Lockers stand in the hall and take a small coin | rooms
Do I get the coin back? | The locker gives your coin back | fees
May I bring my dog? | Dogs may wait in the yard | rooms
Where is the poetry? | Poetry is on the round shelf in the middle | stacks
Can I suggest a book? | Put your wish on a slip in the wooden box | stacks
How do I end my card? | Give your card back and it ends the same day | loans
Can I hear old recordings? | Old recordings can be heard in the small booth | rooms
Is there a fee for the booth? | The booth is free for one hour | fees
Where are the science books? | Science fills the long wall on the first floor | stacks
Can I borrow a book for my school? | Schools may borrow thirty books for a term | loans
Do you sell old books? | Old books are sold for one coin in spring | fees
May I film in the library? | Ask us before you film in a room | rooms
Where do new books stand? | New books stand on the table by the entrance | stacks
"""
_TEST = """
May I borrow a globe? | A globe can be borrowed for one week | loans
Where are the law books? | Law books stand in the last row on the left | stacks
Is there a fee for the green room? | The green room costs three coins an evening | fees
Can I play chess here? | Chess boards lie ready in the hall | rooms
How do I change my address? | Bring a new letter and we change your address | loans
Where can I plug in my computer? | There are sockets under the tables by the window | rooms
Where are songs for children? | Songs for children are on the shelf with the bears | stacks
Do I pay for a reserved book? | A reserved book costs nothing | fees
Can my brother fetch my books? | Your brother may fetch them with your card | loans
Where do you keep old letters? | Old letters lie in the grey cases in the cellar | stacks
Is the garden open? | The garden is open while the sun is up | rooms
What does a year's card cost? | A card for a year costs twelve coins | fees
May I keep a magazine overnight? | Magazines may leave the house for one night | loans
Where is the book on bees? | Books on bees stand beside those on birds | stacks
Is there a place for my bicycle? | Bicycles stand under the roof in the yard | rooms
How do I pay from home? | You can pay from home with the number on the slip | fees
"""


@dataclass(frozen=True)
class Exchange:
    """A visitor's question, the fact that answers it, and the desk in charge."""

    question: str
    fact: str
    desk: str

    @property
    def answer(self) -> str:
        """The answer in the house style."""
        return f"{self.fact}. [{self.desk}]"

    @property
    def prompt(self) -> list[Message]:
        """The system's line and the question, which stand before the answer."""
        return [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": self.question},
        ]

    @property
    def messages(self) -> list[Message]:
        """The whole conversation."""
        return [*self.prompt, {"role": "assistant", "content": self.answer}]


def _read(text: str) -> tuple[Exchange, ...]:
    lines = (line.split(" | ") for line in text.strip().split("\n"))
    return tuple(Exchange(*parts) for parts in lines)


TRAIN, TEST = _read(_TRAIN), _read(_TEST)


def encode(tokenizer: Any, messages: Sequence[Message]) -> dict[str, list[int]]:
    """Return a conversation's ``input_ids``, and ``labels`` that are -100 but at what the assistant says.

    The token that ends a turn is the assistant's too, or it would never learn to stop; the line break after
    it is the template's.

    Args:
        tokenizer: one with a chat template that writes each turn after those before it.
        messages: dicts with "role" and "content".
    """
    write = partial(tokenizer.apply_chat_template, return_dict=False)  # tokens of some messages
    ids: list[int] = []
    labels: list[int] = []
    for turn, message in enumerate(messages):
        start = len(write(messages[:turn], add_generation_prompt=True)) if turn else 0
        ids = write(messages[: turn + 1])
        labels += [IGNORED_LABEL] * (len(ids) - len(labels))
        if message["role"] == "assistant":
            stop = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
            labels[start:stop] = ids[start:stop]
    return {"input_ids": ids, "labels": labels}
