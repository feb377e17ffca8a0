"""Expanders by hand: which new layers start at zero or are gated, and which growths only add layers on top."""

import pytest

from apollo_cli.growth.expanders import (
    Bert2Bert,
    CopyLayers,
    Expander,
    Fresh,
    Interpolate,
    Lemon,
    Ligo,
    Msg,
    Net2Net,
    SplitCopies,
    expander,
)
from apollo_cli.growth.layer_maps import copies, mixing_matrix


@pytest.mark.parametrize(
    ("method", "layer_map", "zero_init", "gated"),
    [
        (CopyLayers("stack"), "stack", (), ()),
        (Interpolate("linear"), "linear", (), ()),
        (Net2Net(), "nearest", (1, 3), ()),
        (Lemon(), "nearest", (1, 3), ()),
        (Msg(0.2), "stack", (), (2, 3)),
        (Bert2Bert("aki"), "stack", (), ()),
        (Ligo(100, 1e-3), "stack", (), ()),
        (SplitCopies(1.0), "nearest", (), ()),
        (Fresh(0.0), "nearest", (1, 3), ()),
        (Fresh(0.1), "nearest", (), ()),
    ],
    ids=str,
)
def test_growth_from_two_to_four_layers(
    method: Expander, layer_map: str, zero_init: tuple[int, ...], gated: tuple[int, ...]
) -> None:
    growth = method.growth(2, 4)
    assert (growth.matrix == mixing_matrix(layer_map, 2, 4)).all()
    assert (growth.zero_init, growth.gated) == (zero_init, gated)
    assert growth.gate_duration == (0.2 if gated else 0)


def test_the_width_grows_by_fpi_except_where_the_method_has_a_rule_of_its_own() -> None:
    methods = [CopyLayers("stack"), Net2Net(), Bert2Bert("aki"), Bert2Bert("fpi"), Lemon()]
    assert [method.width_rule for method in methods] == ["fpi", "fpi", "aki", "fpi", "lemon"]


@pytest.mark.parametrize(
    ("method", "on_top"),
    [
        *((CopyLayers(name), name in ("stack", "append")) for name in ("stack", "append", "middle", "boundary")),
        *((Interpolate("nearest"), False), (Interpolate("linear"), False), (Net2Net(), False), (Msg(0.1), True)),
        *((Bert2Bert("aki"), True), (Ligo(1, 1.0), False)),
    ],
    ids=str,
)
def test_new_layers_are_on_top_where_the_old_ones_stay_the_lowest(method: Expander, on_top: bool) -> None:
    assert method.adds_on_top(6, 8) is on_top


def test_a_taken_name_is_refused() -> None:
    for name in ("stack", "net2net", "linear"):
        with pytest.raises(ValueError, match=f"there is an expander or a layer map '{name}' already"):
            expander(name)(Net2Net)
        with pytest.raises(ValueError, match=f"there is an expander or a layer map '{name}' already"):
            copies(name)(lambda source, target: ())
