"""AdamW (Loshchilov 2019, algorithm 2) by torch's fused kernel."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class AdamW:
    """The arithmetic of `torch.optim.AdamW(fused=True)`, to the last bit.

    torch's class imports the compiler when it is made, whether compiled or not, which takes a second.

    Attributes:
        param_groups: `params`, their `weight_decay` and, if it is not 1, their `lr_scale`; may be edited in place.
        state: for each parameter that had a gradient what `begin` returns, all fp32.
        averages: the mean of each parameter's values over all updates, ema mean + (1 - ema) values, from its first
            value on; empty without `ema`.
        lr: of the next update, a number or a tensor ().
        lr_scales: the factor of `lr` for some parameters; 1 for the others.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float | Tensor,
        betas: tuple[float, float],
        eps: float,
        ema: float | None = None,
    ) -> None:
        self.param_groups = list(groups)
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.ema = ema
        parameters = [p for group in self.param_groups for p in group["params"]] if ema is not None else []
        self.averages: dict[Tensor, Tensor] = {p: p.detach().clone() for p in parameters}
        self.lr_scales: Mapping[Tensor, float] = {}
        self.lr, self.betas, self.eps = lr, betas, eps

    def zero_grad(self, *, in_place: bool = False) -> None:
        """Drops the gradients, or sets them to zero where they are."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if in_place:
            if gradients := [parameter.grad for parameter in parameters if parameter.grad is not None]:
                torch._foreach_zero_(gradients)
            return
        for parameter in parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, blocked: Tensor | None = None) -> None:
        """Updates the parameters that have a gradient; changes nothing if `blocked`, (), is 1.

        That number is read on its device, so there is no wait.
        """
        if blocked is not None and blocked.device.type == "mps" and blocked:  # its kernel may not read it
            return
        for group in self.param_groups:
            by_scale: dict[float, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_scale.setdefault(self.lr_scales.get(parameter, 1.0), []).append(parameter)
                    if parameter not in self.state:
                        self.state[parameter] = self.begin(group, parameter)
            for scale, updated in by_scale.items():
                self.update(group, updated, self.lr * (scale * group.get("lr_scale", 1.0)), blocked)
        if self.ema is not None:
            weight = 1 - self.ema if blocked is None else (1 - self.ema) * (1 - blocked)
            for parameter, average in self.averages.items():
                average.lerp_(parameter, weight)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it, the parameters have their averages for values."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, average in self.averages.items():
            values = parameter.clone()
            parameter.copy_(average)
            average.copy_(values)

    def begin(self, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        """The state before the first update: `step` (), `exp_avg` and `exp_avg_sq` of the parameter's shape."""
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        return {"step": torch.zeros((), device=parameter.device), **moments}

    def update(
        self, group: Mapping[str, Any], parameters: Sequence[Tensor], lr: float | Tensor, blocked: Tensor | None
    ) -> None:
        """Updates these parameters of a group, all of which have a gradient, by torch's kernel."""
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            list(parameters),
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=blocked,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=group["weight_decay"],
            eps=self.eps,
            maximize=False,
        )
