"""The schema of `model` and `size`."""

from collections.abc import Mapping
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
        """The sizes and the initialization of the model."""
        sizes = self.model_dump(include={field.name for field in fields(ModelConfig)})
        init = Initialization(self.init_std, self.init_positions, self.init_positions_std, self.init_residual)
        return ModelConfig(
            vocabulary=vocabulary, positions=positions, init=init, complete_p=self.complete_p, **sizes
        )


class BertArgs(ModelArgs):
    """model=bert."""

    kind: Literal["bert"]
    mask_fraction: Annotated[float, Field(gt=0, lt=1)]
    whole_word_masking: bool
    norm: Norm = "post"  # absent in older runs


class GptArgs(ModelArgs):
    """model=gpt."""

    kind: Literal["gpt"]


class LlamaArgs(ModelArgs):
    """model=llama."""

    kind: Literal["llama"]
    kv_heads: Size | None
    tied: bool


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


def model_problems(model: ModelArgs) -> list[str]:
    """Messages about valid keys that do not fit together."""
    if not model.hidden % model.heads:
        return _head_problems(model) + _base_problems(model)
    fitting = [h for h in range(1, min(model.hidden, 1024) + 1) if model.hidden % h == 0]
    near = min(fitting, key=lambda h: abs(h - model.heads))
    return [
        f"model.heads={model.heads} does not divide model.hidden={model.hidden}; for example model.heads={near}"
    ]


def _head_problems(model: ModelArgs) -> list[str]:
    """Messages about LLaMA's heads."""
    if not isinstance(model, LlamaArgs):
        return []
    found = []
    if model.hidden // model.heads % 2:
        found.append(
            f"model.heads={model.heads}: a head has {model.hidden // model.heads} of model.hidden={model.hidden} "
            "dimensions, and rotations turn pairs of them: take an even number"
        )
    if model.kv_heads and model.heads % model.kv_heads:
        fitting = [heads for heads in range(1, model.heads + 1) if model.heads % heads == 0]
        near = min(fitting, key=lambda heads: abs(heads - (model.kv_heads or 0)))
        found.append(
            f"model.kv_heads={model.kv_heads} does not divide model.heads={model.heads}; for example "
            f"model.kv_heads={near}"
        )
    return found


def _base_problems(model: ModelArgs) -> list[str]:
    """Messages about the base model of CompleteP."""
    if model.parametrization == "standard":
        return []
    if isinstance(model, BertArgs) and model.norm == "post":
        return [
            "model.parametrization=completep: its factor belongs into a residual stream that nothing normalises, "
            "and model.norm=post has a norm after each sum; type model.norm=pre, or model.parametrization=standard"
        ]
    for key, meaning, value in (("base_hidden", "width", model.hidden), ("base_layers", "depth", model.layers)):
        if getattr(model, key) is None:
            return [
                f"model.{key}=null: model.parametrization=completep needs the {meaning} of the model whose rate "
                f"suits; for example model.{key}={value}"
            ]
    if model.base_heads is None:
        return [
            f"model.base_heads=null: heads of {model.hidden // model.heads} do not divide "
            f"model.base_hidden={model.base_hidden}; type the number of heads that the base model has"
        ]
    if model.base_hidden and model.base_hidden % model.base_heads:
        return [f"model.base_heads={model.base_heads} does not divide model.base_hidden={model.base_hidden}"]
    return []
