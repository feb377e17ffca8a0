"""The schema of `model` and `size`."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import Field

from apollo_cli.config.schema import Section, Size, whole
from apollo_cli.models.model_config import (
    CompleteP,
    Initialization,
    Kind,
    ModelConfig,
    Norm,
    Parametrization,
    PositionInit,
    ResidualInit,
    std_of_width,
)

MOST_LAYERS = 10_000


class ModelArgs(Section):
    """`model` and `size`: the sizes and the initialization of the model."""

    kind: Kind
    layers: Annotated[Size, Field(le=MOST_LAYERS)]
    hidden: Annotated[Size, Field(le=1_000_000)]
    heads: Size
    ffn: Size
    dropout: Annotated[float, Field(ge=0, lt=1)]
    init_std: Annotated[float, Field(gt=0, le=10)]
    init_positions: PositionInit
    init_positions_std: Annotated[float, Field(gt=0, le=10)]
    init_residual: ResidualInit
    parametrization: Parametrization = "standard"  # this and the base are absent in older runs
    base_hidden: Size | None = None
    base_layers: Size | None = None
    base_heads: Size | None = None

    @property
    def complete_p(self) -> CompleteP | None:
        """The base model of CompleteP; None in the standard parametrization."""
        if self.parametrization == "standard" or not (self.base_hidden and self.base_layers and self.base_heads):
            return None
        return CompleteP(self.base_hidden, self.base_layers, self.base_hidden // self.base_heads)

    def build(self, vocabulary: int, positions: int) -> ModelConfig:
        sizes = self.model_dump(include={field.name for field in fields(ModelConfig)})
        init = Initialization(self.init_std, self.init_positions, self.init_positions_std, self.init_residual)
        return ModelConfig(
            vocabulary=vocabulary, positions=positions, init=init, complete_p=self.complete_p, **sizes
        )

    def rule_problems(self) -> Iterator[str]:
        if self.hidden % self.heads:
            fitting = [h for h in range(1, min(self.hidden, 1024) + 1) if self.hidden % h == 0]
            near = min(fitting, key=lambda h: abs(h - self.heads))
            yield (
                f"model.heads={self.heads} does not divide model.hidden={self.hidden}; for example "
                f"model.heads={near}"
            )
        elif self.parametrization == "completep":
            yield from self.base_problems()

    def base_problems(self) -> Iterator[str]:
        """Messages about the base model of CompleteP."""
        missing = [key for key in ("base_hidden", "base_layers") if getattr(self, key) is None]
        if missing:
            meaning, value = ("width", self.hidden) if missing[0] == "base_hidden" else ("depth", self.layers)
            yield (
                f"model.{missing[0]}=null: model.parametrization=completep needs the {meaning} of the model whose "
                f"rate suits; for example model.{missing[0]}={value}"
            )
        elif self.base_heads is None:
            yield (
                f"model.base_heads=null: heads of {self.hidden // self.heads} do not divide "
                f"model.base_hidden={self.base_hidden}; type the number of heads that the base model has"
            )
        elif self.base_hidden and self.base_hidden % self.base_heads:
            yield f"model.base_heads={self.base_heads} does not divide model.base_hidden={self.base_hidden}"


class BertArgs(ModelArgs):
    """model=bert."""

    kind: Literal["bert"]
    mask_fraction: Annotated[float, Field(gt=0, lt=1)]
    whole_word_masking: bool
    norm: Norm = "post"  # absent in older runs

    def base_problems(self) -> Iterator[str]:
        if self.norm == "pre":
            yield from super().base_problems()
            return
        yield (
            "model.parametrization=completep: its factor belongs into a residual stream that nothing normalises, "
            "and model.norm=post has a norm after each sum; type model.norm=pre, or model.parametrization=standard"
        )


class GptArgs(ModelArgs):
    """model=gpt."""

    kind: Literal["gpt"]


class LlamaArgs(ModelArgs):
    """model=llama."""

    kind: Literal["llama"]
    kv_heads: Size | None
    tied: bool

    def rule_problems(self) -> Iterator[str]:
        yield from super().rule_problems()
        if self.hidden % self.heads:
            return
        if self.hidden // self.heads % 2:
            yield (
                f"model.heads={self.heads}: a head has {self.hidden // self.heads} of model.hidden={self.hidden} "
                "dimensions, and rotations turn pairs of them: take an even number"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            fitting = [heads for heads in range(1, self.heads + 1) if self.heads % heads == 0]
            near = min(fitting, key=lambda heads: abs(heads - (self.kv_heads or 0)))
            yield (
                f"model.kv_heads={self.kv_heads} does not divide model.heads={self.heads}; for example "
                f"model.kv_heads={near}"
            )


MODEL_FAMILY: tuple[type[ModelArgs], ...] = (BertArgs, GptArgs, LlamaArgs)


def with_sizes(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plain values of `model`, valid or not, with numbers where they are null and follow the width.

    The inner width is four times the width, or with llama's three matrices 8/3 of it to the nearest multiple of 64,
    so that a layer has about as many weights; a head has 64 dimensions, or else 32, or the most between them that
    divide the width. Weights begin with a standard deviation of 0.02 at a width of 768 (Devlin 2019, Radford 2019)
    and of 0.02 sqrt(768 / hidden) at others, so that sums over the width are as large; position embeddings with
    twice that. The base model of CompleteP has as many heads as follow from its width, or heads of the typed size;
    the deviation is that of the base, too.
    """
    hidden = whole(values.get("hidden"))
    if type(hidden) is not int or hidden < 1:
        hidden = 1  # the problem is reported for model.hidden
    is_llama = values.get("kind") == "llama"
    ffn = max(1, round(hidden / 24)) * 64 if is_llama else 4 * hidden
    heads, base = whole(values.get("heads")), whole(values.get("base_hidden"))
    if values.get("parametrization") != "completep" or type(base) is not int or base < 1:
        base = None
    typed = values.get("init_std")
    std = typed if isinstance(typed, int | float) else std_of_width(base or hidden)
    following = {
        "heads": hidden // _head_width(hidden, is_llama=is_llama),
        "ffn": ffn,
        "init_std": std,
        "init_positions_std": 2 * std,
    }
    if base and type(heads) is not int:
        following["base_heads"] = base // _head_width(base, is_llama=is_llama)
    elif base and heads > 0 and hidden % heads == 0 and base % (hidden // heads) == 0:
        following["base_heads"] = base * heads // hidden
    return {**values, **{key: number for key, number in following.items() if values.get(key, 0) is None}}


def _head_width(hidden: int, *, is_llama: bool) -> int:
    """The width of a head where the number of heads is not typed."""
    widths = (64, 32, *range(62, 32, -2)) if is_llama else (64, 32, *range(63, 32, -1))  # rotations turn pairs
    return next((width for width in widths if hidden % width == 0 and hidden >= 2 * width), hidden)
