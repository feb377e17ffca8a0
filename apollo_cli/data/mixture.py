"""Several sources as one corpus."""

from collections.abc import Callable, Iterator
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
        """The members; one without a weight that has parts itself stands for these."""
        if not self.members:
            raise DataError(
                "data.sources is empty: name some, for example 'data.sources=[{kind:text,files:[a.txt],weight:0.7},"
                "{kind:pydocs,weight:0.3}]'"
            )
        return [part for member in self.members for part in _parts_of(member)]

    def title(self) -> str:
        """Those of the members."""
        return "; ".join(member.source.title() for member in self.members)

    def identity(self) -> dict[str, Any]:
        """Those of the members, and their weights: the tokenizer learns from all by them."""
        return {"parts": [[type(p.source).__name__, p.source.identity(), p.weight] for p in self.parts()]}

    @property
    def is_endless(self) -> bool:
        """Whether any member is."""
        return any(member.source.is_endless for member in self.members)

    def edition(self) -> list[Any] | None:
        """Those of the members; None where no member has one."""
        editions = [part.source.edition() for part in self.parts()]
        return None if all(edition is None for edition in editions) else editions

    def reach(self) -> None:
        """Member by member."""
        for part in self.parts():
            part.source.reach()

    def fetch(self, say: Callable[[str], None]) -> None:
        """Member by member."""
        for part in self.parts():
            part.source.fetch(say)

    def documents(self) -> Iterator[str]:
        """Member by member."""
        return chain.from_iterable(part.source.documents() for part in self.parts())

    def remarks(self) -> list[str]:
        """Those of the members."""
        return [remark for member in self.members for remark in member.source.remarks()]


def _parts_of(member: Part) -> list[Part]:
    return member.source.parts() if member.weight is None else [member]
