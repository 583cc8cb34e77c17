"""How good a model is on held-out images, with its interval, and which of two is better.

Neither Keras nor TensorFlow is needed for this: `kresnet runs` reads scores with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson_interval(right: int, n: int, *, z: float = _Z95) -> tuple[float, float]:
    """Return the interval of a share, after Wilson 1927 (J. Am. Stat. Assoc. 22, 209-212).

    Unlike the textbook interval it stays within 0..1 and is honest for few images and for shares
    near 1.

    Args:
        right: Number of successes.
        n: Number of trials, at least 1.
        z: Quantile of the normal distribution; without it, the interval holds 95 %.
    """
    share, z2 = right / n, z**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


@dataclass(frozen=True, slots=True)
class Score:
    """How well a model does on images it did not learn from.

    Attributes:
        accuracy: Share of images whose highest score is the right class.
        loss: Mean negative log-likelihood of the right class, in nats.
        n: Number of images; None if it is not known.
    """

    accuracy: float
    loss: float
    n: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        """Return the accuracy with half of its 95 % interval, and the loss."""
        margin = ""
        if self.n:
            low, high = wilson_interval(round(self.accuracy * self.n), self.n)
            margin = f" ±{(high - low) / 2:.3f}".replace("0.", ".", 1)
        return f"{self.accuracy:.3f}{margin} (loss {self.loss:.3f})"

    def beats(self, other: Score | None) -> bool:
        """Tell whether this is better; equal accuracy is decided by the loss."""
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)
