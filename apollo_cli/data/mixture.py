"""Several sources as one corpus."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from apollo_cli.data.sources import Part, Source
from apollo_cli.errors import DataError


@dataclass(frozen=True)
class Mixture(Source):
    """Sources, each with its share of the training rows, or together, every row once an epoch."""

    members: tuple[Part, ...]

    def parts(self) -> list[Part]:
        """The members; a member without a weight that has several parts is replaced by them."""
        if not self.members:
            raise DataError(
                "data.sources is empty: name some, for example 'data.sources=[{kind:text,files:[a.txt],weight:0.7},"
                "{kind:pydocs,weight:0.3}]'"
            )
        return [
            part
            for member in self.members
            for part in (member.source.parts() if member.weight is None else [member])
        ]

    def title(self) -> str:
        return "; ".join(member.source.title() for member in self.members)

    def identity(self) -> dict[str, Any]:
        """The members' identities, and their weights: the tokenizer is trained on all of them by weight."""
        return {"parts": [[type(p.source).__name__, p.source.identity(), p.weight] for p in self.parts()]}

    def edition(self) -> list[Any] | None:
        editions = [part.source.edition() for part in self.parts()]
        return None if all(edition is None for edition in editions) else editions

    def documents(self) -> Iterator[str]:
        return chain.from_iterable(part.source.documents() for part in self.parts())
