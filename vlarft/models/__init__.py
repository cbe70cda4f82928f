"""Models: tokenizer, world model, policy and LPIPS, as plain torch modules."""

from vlarft.models.flow_policy import FlowPolicy, FlowPolicyConfig, build_policy
from vlarft.models.layout import Layout
from vlarft.models.lpips import LPIPS
from vlarft.models.policy import LogProb, Observation, Policy, Proposal
from vlarft.models.tokenizer import Tokenizer, TokenizerConfig
from vlarft.models.world_model import WorldModel

__all__ = [
    "LPIPS",
    "FlowPolicy",
    "FlowPolicyConfig",
    "Layout",
    "LogProb",
    "Observation",
    "Policy",
    "Proposal",
    "Tokenizer",
    "TokenizerConfig",
    "WorldModel",
    "build_policy",
]
