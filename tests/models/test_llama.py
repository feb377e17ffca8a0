import math

import torch

from apollo_cli.models.build import build, num_parameters
from apollo_cli.models.dropout import Dropout
from apollo_cli.models.gpt import Llama
from apollo_cli.models.model_config import ModelConfig
from apollo_cli.models.transformer import rotated, rotations

SHAPE = ModelConfig("llama", vocabulary=31, positions=12, hidden=16, heads=4, ffn=40, layers=6, kv_heads=2)


def test_a_rotation_by_hand() -> None:
    """Width 4 has two planes, components 0 and 2 and components 1 and 3, of frequencies 1 and 1/100."""
    ones = torch.ones(1, 3, 4)
    turned = rotated(ones, rotations(3, 4, torch.device("cpu")))[0]
    for position in range(3):
        fast, slow = float(position), position / 100
        expected = [
            math.cos(fast) - math.sin(fast),
            math.cos(slow) - math.sin(slow),
            math.cos(fast) + math.sin(fast),
            math.cos(slow) + math.sin(slow),
        ]
        torch.testing.assert_close(turned[position], torch.tensor(expected))


def test_a_score_depends_on_the_distance_alone() -> None:
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(8, generator=random).expand(20, 8) for _ in range(2))
    turns = rotations(20, 8, torch.device("cpu"))
    scores = rotated(query, turns) @ rotated(key, turns).T
    for distance in (-3, 0, 7):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)


def test_parameters_by_hand() -> None:
    """Per layer: Q and O of 16 x 16, K and V of 16 x 8, three of 16 x 40, two gains of 16; no biases."""
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 40 + 2 * 16
    assert num_parameters(SHAPE, 3) == 31 * 16 + 3 * layer + 16 == Llama(SHAPE, 3).num_parameters()
    untied = ModelConfig("llama", 31, 12, 16, 4, 40, 6, tied=False)
    more = 2 * 16 * 8  # as many keys and values as queries
    assert num_parameters(untied, 3) == 2 * 31 * 16 + 3 * (layer + more) + 16 == build(untied, 3).num_parameters()


def test_dropout_with_grouped_queries_agrees_with_torch_in_the_mean() -> None:
    """Weights are dropped in another way on a CPU; with a probability near 0 hardly any is."""
    torch.manual_seed(0)
    llama = Llama(SHAPE, 2)
    tokens = torch.arange(10)[None]
    expected = llama.eval().logits(tokens, range(2))
    llama.train()
    for module in llama.modules():
        if isinstance(module, Dropout):
            module.probability = 1e-9
    torch.testing.assert_close(llama.logits(tokens, range(2)), expected, rtol=0, atol=1e-4)
