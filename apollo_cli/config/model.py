"""The schema of `model` and `size`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from apollo_cli.config.schema import Section, Size, whole
from apollo_cli.models.model_config import Kind, PositionInit, ResidualInit

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


class BertArgs(ModelArgs):
    """model=bert."""

    kind: Literal["bert"]
    mask_fraction: Annotated[float, Field(gt=0, lt=1)]
    whole_word_masking: bool


class GptArgs(ModelArgs):
    """model=gpt."""

    kind: Literal["gpt"]


MODEL_FAMILY: tuple[type[ModelArgs], ...] = (BertArgs, GptArgs)


def with_sizes(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plain values of `model`, valid or not, with numbers for `heads` and `ffn` where they are null.

    The inner width is four times the width; a head has 64 dimensions, or else 32, or the most between them that
    divide the width.
    """
    hidden = whole(values.get("hidden"))
    if type(hidden) is not int or hidden < 1:
        hidden = 1  # the problem is reported for model.hidden
    sizes = (64, 32, *range(63, 32, -1))
    head = next((size for size in sizes if hidden % size == 0 and hidden >= 2 * size), hidden)
    following = {"heads": hidden // head, "ffn": 4 * hidden}
    return {**values, **{key: number for key, number in following.items() if values.get(key, 0) is None}}


def model_problems(model: ModelArgs) -> list[str]:
    """Messages about valid keys that do not fit together."""
    if not model.hidden % model.heads:
        return []
    fitting = [h for h in range(1, min(model.hidden, 1024) + 1) if model.hidden % h == 0]
    near = min(fitting, key=lambda h: abs(h - model.heads))
    return [
        f"model.heads={model.heads} does not divide model.hidden={model.hidden}; for example model.heads={near}"
    ]
