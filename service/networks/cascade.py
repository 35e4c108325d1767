"""What every network is: stages, cheapest first, each of which gives logits and may hand features to the next."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

Carried = tuple[Tensor, ...]


class Cascade(nn.Module):
    """One PyTorch module that runs as one or more stages.

    Attributes:
        scales: of each stage, how many times smaller than the last one's its input is.
    """

    scales: tuple[int, ...]

    @property
    def depth(self) -> int:
        """How many stages there are."""
        return len(self.scales)

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """One stage.

        Args:
            stage: its index, 0 first.
            images: normalised, (B, 3, R, R) with R this stage's resolution.
            carried: what the stage before handed on, for the same images; empty for the first.

        Returns:
            Logits (B, K), and what the next stage is to be given.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Every stage, as in training: (B, 3, R, R) at the last stage's resolution -> logits (B, K) of each."""
        return self.run_all(pyramid(images, self.scales))

    def run_all(self, images: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Every stage on the images in its size -> logits (B, K) of each."""
        carried: Carried = ()
        answers = []
        for stage, pixels in enumerate(images):
            logits, carried = self.run(stage, pixels, carried)
            answers.append(logits)
        return tuple(answers)


def pyramid(images: Tensor, scales: Sequence[int]) -> list[Tensor]:
    """``images`` (B, C, H, W), averaged over s x s pixels for each s of ``scales``: (B, C, H // s, W // s)."""
    return [images if scale == 1 else nn.functional.avg_pool2d(images, scale) for scale in scales]
