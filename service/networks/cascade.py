"""The interface of every network: stages, cheapest first. Each computes logits and may pass features to the next."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

Carried = tuple[Tensor, ...]


class Cascade(nn.Module):
    """One PyTorch module that runs as one or more stages.

    Attributes:
        scales: for each stage, the last stage's input size divided by this stage's.
    """

    scales: tuple[int, ...]

    @property
    def depth(self) -> int:
        """The number of stages."""
        return len(self.scales)

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """One stage.

        Args:
            stage: its index, 0 first.
            images: normalised, (B, 3, R, R) with R this stage's resolution.
            carried: features from the previous stage, for the same images; empty for the first stage.

        Returns:
            Logits (B, K), and the features for the next stage.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run every stage, as in training: (B, 3, R, R) at the last stage's resolution -> logits (B, K) of each
        stage.
        """
        return self.run_all(pyramid(images, self.scales))

    def run_all(self, images: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run every stage on the images at its own size -> logits (B, K) of each stage."""
        carried: Carried = ()
        answers = []
        for stage, pixels in enumerate(images):
            logits, carried = self.run(stage, pixels, carried)
            answers.append(logits)
        return tuple(answers)


def pyramid(images: Tensor, scales: Sequence[int]) -> list[Tensor]:
    """``images`` (B, C, H, W), averaged over s x s pixels for each s of ``scales``: (B, C, H // s, W // s)."""
    return [images if scale == 1 else nn.functional.avg_pool2d(images, scale) for scale in scales]
