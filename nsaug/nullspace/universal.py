"""One noise for all images, learned over part of a data set: what the paper's authors do at each epoch's start."""

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from nsaug.models.noisy_vit import NoisyViT, eval_mode
from nsaug.nullspace.influence import full_precision, influence
from nsaug.nullspace.synthesis import Descent, Refinement, Synthesis, check_images, root_mean_square
from nsaug.utils.errors import UserError
from nsaug.utils.rng import GeneratorLike
from nsaug.utils.types import PositiveFraction, PositiveInt, validated_dataclass

Batches = Callable[[int], Iterable[Tensor]]
"""From the number of a round to its batches of images, (B, 3, H, W) in [0, 1], on the model's device."""


@validated_dataclass
class EpochSynthesis(Synthesis):
    """Learns one noise, (1, *vit.noise_shape(site)), from batch after batch, with the model in eval mode.

    AdamW with a cosine decay over `rounds` whole rounds, of which only a `share` is ever stepped, as in the authors'
    code. Before each update the mean influence on the current batch is looked at; the first that lies below ε ends it.
    """

    rounds: PositiveInt = 3
    """The most passes over a share of the batches."""
    share: PositiveFraction = 0.1
    """Of the batches, in each round."""

    def cost(self, share: float = 1.0) -> float:
        return 1 + share + self.rounds * self.share

    def updates(self, count: int) -> int:
        """The most updates of one round, for a data set of `count` batches."""
        return max(1, int(self.share * count))

    def learn(
        self,
        vit: NoisyViT,
        batches: Batches,
        count: int,
        generator: GeneratorLike = None,
        rms: Tensor | None = None,
        last: Tensor | None = None,
        reduce_mean: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> Refinement:
        """Learns the noise; leaves gradients, modes, running statistics and other generators alone.

        Args:
            batches: gives each round's; only the first `updates(count)` of a round are asked for.
            count: how many batches a whole round has; the same on all ranks.
            generator: draws the starting noise; the same on all ranks.
            rms: rms(u), what relative units count in; measured on the first batch where None.
            last: the noise found before, for `init=warm`.
            mean_over_ranks: averages influence and gradient, so that all ranks end with one noise.

        Returns:
            The refinement; its influences are those on the first batch and on the last one looked at. The last update
            of a noise that never got below ε was not looked at any more.

        Raises:
            UserError: no batches, values that are no image's, an unknown site.
        """
        descent: Descent | None = None
        steps = 0
        with eval_mode(vit):
            for images in _in_turn(batches, self.rounds, self.updates(count)):
                check_images(images)
                with torch.no_grad():
                    target = full_precision(vit(images))
                if descent is None:
                    unit, width = self.unit(vit, images, rms)
                    if self.init == "warm" and last is not None:
                        noise = last / unit
                    else:
                        noise = width * self.draw(vit, images, generator)
                    descent = Descent(self, noise, unit)
                    decay = torch.optim.lr_scheduler.CosineAnnealingLR(descent.optimizer, count * self.rounds)
                    norm_before = root_mean_square(descent.found)
                with torch.enable_grad():
                    logits = full_precision(vit(images, descent.noise * descent.unit, self.layer))
                    distance = (logits - target).norm(dim=-1).mean(0, keepdim=True)
                each = influence(logits.detach(), target)
                if steps == 0:
                    influence_before = each
                now = reduce_mean(each.mean(0, keepdim=True))
                within = descent.within(now)
                if self.growth == 1 and bool(within):
                    break
                last_one = steps + 1 == self.rounds * self.updates(count)
                descent.update(distance, now, within, last=last_one, averaged=reduce_mean)
                decay.step()
                steps += 1
        if descent is None:
            raise UserError("there are no batches to learn noise from")
        return Refinement(
            noise=descent.found,
            logits=None,
            influence_before=influence_before,
            influence_after=each,
            norm_before=norm_before,
            norm_after=root_mean_square(descent.found),
            converged=(now < self.eps).expand(len(each)),
            steps=steps,
        )


def _in_turn(batches: Batches, rounds: int, most: int) -> Iterable[Tensor]:
    for number in range(rounds):
        yield from itertools.islice(batches(number), most)
