"""AdamW (Loshchilov 2019, algorithm 2) by torch's fused kernel."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class AdamW:
    """The arithmetic of `torch.optim.AdamW(fused=True)`, to the last bit.

    torch's class imports the compiler when it is made, whether compiled or not, which takes a second.

    Attributes:
        param_groups: `params` and their `weight_decay`; may be edited in place.
        state: for each parameter that had a gradient `step` (), `exp_avg` and `exp_avg_sq` of its shape, all fp32.
        lr: of the next update.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        self.param_groups = list(groups)
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.lr, self.betas, self.eps = lr, betas, eps

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self, blocked: Tensor | None = None) -> None:
        """Updates the parameters that have a gradient; changes nothing if `blocked`, (), is 1.

        The kernel reads that number on its device, as it does for torch's gradient scaler, so there is no wait.
        """
        if blocked is not None and blocked.device.type == "mps" and blocked:  # its kernel may not read it
            return
        for group in self.param_groups:
            updated = [p for p in group["params"] if p.grad is not None]
            states = [self.state.get(p) or self._begin(p) for p in updated]
            adamw(
                updated,
                [p.grad for p in updated],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                found_inf=blocked,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=self.lr,
                weight_decay=group["weight_decay"],
                eps=self.eps,
                maximize=False,
            )

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
        return self.state[parameter]
