"""Finished networks one after another that share no features: the naive cascade of the paper's section 3.1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from service.networks.cascade import Carried, Cascade


class Composed(Cascade):
    """The stages of several networks (its members), in order.

    Args:
        members: networks of the same classes; weights are shared between stages that use the same member.
        order: for each stage of the cascade, the index of its member and of that member's stage. A member's stages are
            consecutive.

    Each stage has its own resolution, given by the model's spec; ``scales`` is not used.
    """

    def __init__(self, members: Sequence[Cascade], order: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.order = tuple(order)
        self.scales = (1,) * len(self.order)

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """See ``Cascade``."""
        index, own = self.order[stage]
        member = self.members[index]
        assert isinstance(member, Cascade)
        logits, handed_on = member.run(own, images, carried)
        is_followed = self.order[stage + 1 : stage + 2] == ((index, own + 1),)
        return logits, handed_on if is_followed else ()
