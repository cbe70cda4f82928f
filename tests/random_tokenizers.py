"""Tokenizers of odd shapes, drawn from a seed."""

import random

from vlarft.models.tokenizer import TokenizerConfig


def random_config(seed):
    """Odd widths, groups, patches and depths of what the tokenizer allows."""
    rng = random.Random(seed)
    levels, patch, edge = rng.choice((2, 3)), rng.choice((1, 2, 3, 4)), rng.choice((1, 2, 3))
    groups = rng.choice((4, 8, 32))
    widths = [groups * rng.choice((1, 3, 5)) for _ in range(levels)]
    widths[-2:] = [32 * rng.choice((1, 2, 3)) for _ in range(2)]
    latent = patch * edge
    return TokenizerConfig(
        resolution=latent * 2 ** (levels - 1),
        block_out_channels=tuple(widths),
        layers_per_block=rng.choice((1, 2)),
        latent_channels=rng.choice((3, 4, 16)),
        norm_num_groups=groups,
        patch_size=patch,
        vq_fsq_levels=(5, 5, 3),
        dyn_fsq_levels=rng.choice(((5, 5, 3), (7, 5, 5, 5, 5))),
        max_att_resolution=latent,
        mid_block_add_attention=rng.random() < 0.5,
    )
