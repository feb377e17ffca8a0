"""Model FLOPs, in closed form."""

from apollo_cli.models.model_config import ModelConfig

FORWARD_AND_BACKWARD = 3  # backward costs twice the forward pass


def forward_flops(model_config: ModelConfig, rows: int, seq_len: int, depth: int, predictions: int) -> int:
    """FLOPs of one forward pass over `rows` of `seq_len` tokens that runs `depth` layers.

    2 per multiply-add of every matrix product (Kaplan 2020, arXiv 2001.08361, table 1; Hoffmann 2022,
    arXiv 2203.15556, appendix F). Per token and layer, with width h and inner width f:

        Q K V and output projections   8 h^2           (4 h^2 + 4 h kv_hidden with fewer key and value heads)
        feed-forward                   4 h f           (6 h f with SwiGLU)
        scores and values              4 h seq_len     (in full: no halving for a causal mask)

    and per prediction, with vocabulary V:

        decoder                        2 h V
        BERT's transform before it     2 h^2

    Norms, softmax, activations, rotations and embedding look-ups are not counted. `predictions` is the number of
    positions for which the head runs: the masked ones (BERT), all but the last of a row (GPT, LLaMA).
    """
    per_prediction = 2 * model_config.hidden * model_config.vocabulary
    if model_config.kind == "bert":
        per_prediction += 2 * model_config.hidden**2
    return depth * layer_flops(model_config, rows, seq_len, rows * seq_len) + predictions * per_prediction


def layer_flops(model_config: ModelConfig, rows: int, seq_len: int, tokens: int) -> int:
    """FLOPs of a layer's forward pass; in padded rows only attention computes more than `tokens`."""
    return tokens * 2 * model_config.layer_weights + rows * seq_len * 4 * model_config.hidden * seq_len


def training_flops(
    model_config: ModelConfig, rows: int, seq_len: int, depth: int, predictions: int, frozen: int = 0
) -> int:
    """FLOPs of one micro-step: forward, and a backward pass of twice its cost.

    The lowest `frozen` layers run forward only. With them the token embedding is frozen, and a decoder that is tied
    to it propagates the gradient and has none of its own. The first post-norm layer above them computes no input
    gradient of Q, K and V, since nothing trains below; a pre-norm layer does, for its norm.
    """
    whole = forward_flops(model_config, rows, seq_len, depth, predictions)
    if not frozen:
        return FORWARD_AND_BACKWARD * whole
    below = forward_flops(model_config, rows, seq_len, frozen, 0)
    saved = 2 * model_config.hidden * model_config.vocabulary * predictions if model_config.tied else 0
    if not model_config.architecture.pre_norm:
        saved += rows * seq_len * 6 * model_config.hidden**2
    return FORWARD_AND_BACKWARD * (whole - below) + below - saved
