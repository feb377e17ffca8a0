"""The number of parameters is tested with the models, in test_transformer.py."""

import subprocess
import sys

SCRIPT = """
import sys
from apollo_cli.models.build import build, build_on_meta
from apollo_cli.models.model_config import ModelConfig
config = ModelConfig("bert", 100, 8, 16, 2, 32, 3)
weights, shapes = build(config, 3).state_dict(), build_on_meta(config, 3).state_dict()
alike = [(name, p.shape, p.dtype) for name, p in weights.items()]
assert alike == [(name, p.shape, p.dtype) for name, p in shapes.items()]
assert all(p.is_meta for p in shapes.values())
assert "torch._dynamo" not in sys.modules
"""


def test_a_model_without_weights_has_the_shapes_of_one_and_does_not_import_the_compiler() -> None:
    """Which takes more than a second."""
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
