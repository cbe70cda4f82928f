"""Models: tokenizer, world model, policy and LPIPS, as plain torch modules."""

from vlarft.models.layout import Layout
from vlarft.models.lpips import LPIPS
from vlarft.models.tokenizer import Tokenizer, TokenizerConfig
from vlarft.models.world_model import WorldModel

__all__ = ["LPIPS", "Layout", "Tokenizer", "TokenizerConfig", "WorldModel"]
