"""The feed-forward part of a layer; on a CPU a few tokens at a time, so that its wide numbers stay in a cache."""

from math import pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_TOKENS_AT_ONCE = 1024
_SLOPE = 2 * (2 / pi) ** 0.5
_CUBIC = 0.044715 * _SLOPE  # the tanh form of GELU (Hendrycks & Gimpel 2016) has these two

aten = torch.ops.aten


def feed_forward(hidden: Tensor, inner: nn.Linear, outer: nn.Linear, gelu: str) -> Tensor:
    """`outer(GELU(inner(hidden)))`.

    In fp32 on a CPU, the activations before GELU are kept for the backward pass, those after it are computed
    again there: its derivative needs all but a product of them anyway. Elsewhere these are three plain calls, which
    a GPU runs and a compiler fuses better.

    Args:
        hidden: (..., width).
        inner: width -> inner width.
        outer: inner width -> width.
        gelu: `none` (the exact form) or `tanh`.
    """
    plain = hidden.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu")
    if plain or not torch.is_grad_enabled():
        return outer(F.gelu(inner(hidden), approximate=gelu))
    return _FeedForward.apply(hidden, inner.weight, inner.bias, outer.weight, outer.bias, gelu)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        in_weight: Tensor,
        in_bias: Tensor,
        out_weight: Tensor,
        out_bias: Tensor,
        gelu: str,
    ) -> Tensor:
        tokens = hidden.reshape(-1, hidden.shape[-1])
        before = tokens.new_empty(len(tokens), len(in_weight))
        result = torch.empty_like(tokens)
        after = _workspace(before)
        for source, a, target in zip(*map(_parts, (tokens, before, result)), strict=True):
            torch.mm(source, in_weight.t(), out=a).add_(in_bias)  # faster than addmm, which begins with a copy
            torch.mm(activate(a, gelu, after[: len(a)]), out_weight.t(), out=target).add_(out_bias)
        ctx.save_for_backward(tokens, before, in_weight, out_weight)
        ctx.gelu = gelu
        return result.view(hidden.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        tokens, before, in_weight, out_weight = ctx.saved_tensors
        gradient = upstream.reshape(-1, upstream.shape[-1])
        of_hidden = torch.empty_like(tokens)
        of_in, of_out = torch.zeros_like(in_weight), torch.zeros_like(out_weight)
        of_in_bias = in_weight.new_zeros(len(in_weight))
        workspaces = [_workspace(before) for _ in range(4)]
        for source, a, g, target in zip(*map(_parts, (tokens, before, gradient, of_hidden)), strict=True):
            after, inner, *spare = (workspace[: len(a)] for workspace in workspaces)
            torch.mm(g, out_weight, out=inner)
            activate_and_derive(a, inner, ctx.gelu, after, spare)
            torch.addmm(of_out, g.t(), after, out=of_out)
            torch.addmm(of_in, inner.t(), source, out=of_in)
            of_in_bias += inner.sum(0)
            torch.mm(inner, in_weight, out=target)
        return of_hidden.view(upstream.shape), of_in, of_in_bias, of_out, gradient.sum(0), None


def activate(a: Tensor, gelu: str, out: Tensor) -> Tensor:
    """GELU of `a` into `out`.

    The tanh form is a * sigmoid(u) with u = slope a + cubic a^3, for (1 + tanh(u/2)) / 2 = sigmoid(u).
    """
    if gelu == "tanh":
        return _sigmoid(a, out).mul_(a)
    return aten.gelu.out(a, approximate="none", out=out)


def activate_and_derive(a: Tensor, upstream: Tensor, gelu: str, out: Tensor, spare: list[Tensor]) -> None:
    """GELU of `a` into `out`, and `upstream` times its derivative at `a` into `upstream`.

    Of the tanh form, with s = sigmoid(u): s + a s (1 - s) u', where u' = slope + 3 cubic a^2.
    """
    if gelu != "tanh":
        aten.gelu.out(a, approximate="none", out=out)
        aten.gelu_backward.grad_input(upstream, a, approximate="none", grad_input=upstream)
        return
    s, change = spare
    torch.mul(a, _sigmoid(a, s), out=out)
    aten.sigmoid_backward.grad_input(upstream, s, grad_input=change)  # upstream s (1 - s)
    upstream.mul_(s)
    torch.addcmul(_constant(a), a, a, value=3 * _CUBIC, out=s).mul_(a)
    upstream.addcmul_(change, s)


def _sigmoid(a: Tensor, out: Tensor) -> Tensor:
    return torch.addcmul(_constant(a), a, a, value=_CUBIC, out=out).mul_(a).sigmoid_()


def _constant(like: Tensor) -> Tensor:
    return like.new_full((), _SLOPE)


def _workspace(like: Tensor) -> Tensor:
    return like.new_empty(min(len(like), _TOKENS_AT_ONCE), like.shape[1])


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.split(_TOKENS_AT_ONCE)
