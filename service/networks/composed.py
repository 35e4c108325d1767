"""Finished networks one after another, which hand each other nothing: the naive cascade of the paper's section 3.1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from service.networks.cascade import Carried, Cascade


class Composed(Cascade):
    """The stages of its members, in order.

    Args:
        members: networks of the same classes; weights are shared between stages that use the same member.
        order: member and its stage, of each stage of the whole. A member's stages follow each other.

    Its stages run at resolutions of their own, which a model's spec states: ``scales`` says nothing of them.
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
