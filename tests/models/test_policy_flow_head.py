"""Flow head, Sigma Net and projectors: official keys and counts, caching, initialisation."""

import pytest
import torch

from vlarft.config import load_config
from vlarft.errors import CheckpointError, ConfigError
from vlarft.models.flow_head import (
    Conditions,
    DiT,
    FlowHead,
    HeadConfig,
    ScalarProjector,
    load_official,
    position_table,
)
from vlarft.models.sigma_net import SigmaNet

SMALL = HeadConfig(width=16, heads=2, blocks=3, cross_blocks=(0, 2), time_features=8)
T, A, PROJECTED, CONTEXT = 8, 7, 6, 10


def official_dit_keys() -> set[str]:
    """The key scheme of spec 4.3, written out independently of the code."""
    pair = ("weight", "bias")
    keys = {"temp_embed"}
    plain = ("x_embedder", "t_embedder.mlp.0", "t_embedder.mlp.2", "proprio_embedder")
    modules = [*plain, "context_adapter", "final_layer.linear", "final_layer.adaLN_modulation.1"]
    for block in range(8):
        modules += [
            f"blocks.{block}.{name}"
            for name in (
                "attn_temporal.qkv", "attn_temporal.proj", "mlp.fc1", "mlp.fc2",
                "adaLN_modulation.1", "cross_attn.layer_norm_v", "cross_attn.layer_norm_l",
                "cross_attn.attn.v_proj", "cross_attn.attn.l_proj",
                "cross_attn.attn.values_l_proj", "cross_attn.attn.out_v_proj",
            )
        ]  # fmt: skip
        keys.add(f"blocks.{block}.cross_attn.gamma_v")
    return keys | {f"{module}.{name}" for module in modules for name in pair}


def paper_dit() -> DiT:
    with torch.device("meta"):
        return DiT(HeadConfig(), 8, 7, 896, 896)


def small_dit() -> DiT:
    torch.manual_seed(0)
    dit = DiT(SMALL, T, A, PROJECTED, CONTEXT)
    with torch.no_grad():
        for parameter in dit.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return dit


def inputs(scenes: int = 2, n: int = 3) -> tuple[torch.Tensor, torch.Tensor, Conditions, DiT]:
    dit = small_dit()
    projected = torch.randn(scenes, n, T, A * PROJECTED)
    conditions = dit.prepare(torch.randn(scenes, 5, CONTEXT), torch.randn(scenes, PROJECTED))
    return projected, torch.tensor([0.3]), conditions, dit


def test_paper_flow_head_has_the_official_keys_and_counts() -> None:
    head = FlowHead(paper_dit())
    assert set(head.state_dict()) == {f"flow_predictor.dit.{k}" for k in official_dit_keys()}
    assert len(head.state_dict()) == 199
    trainable = sum(p.numel() for p in head.parameters() if p.requires_grad)
    fixed = sum(p.numel() for p in head.parameters() if not p.requires_grad)
    assert (trainable, fixed) == (51_289_095, 4_096)


def test_paper_shapes_follow_the_specification() -> None:
    shapes = {key: tuple(value.shape) for key, value in paper_dit().state_dict().items()}
    assert shapes["x_embedder.weight"] == (512, 6272)
    assert shapes["context_adapter.weight"] == (512, 896)
    assert shapes["t_embedder.mlp.0.weight"] == (512, 256)
    assert shapes["blocks.7.adaLN_modulation.1.weight"] == (3072, 512)
    assert shapes["blocks.0.mlp.fc1.weight"] == (2048, 512)
    assert shapes["final_layer.linear.weight"] == (7, 512)
    assert shapes["temp_embed"] == (1, 8, 512)
    cross = sum(p.numel() for p in paper_dit().blocks[1].cross_attn.parameters())
    assert cross == 1_053_184


def test_paper_sigma_net_has_201_keys() -> None:
    net = SigmaNet(paper_dit(), 0.08, 0.2)
    expected = {f"std_predictor.dit.{k}" for k in official_dit_keys()}
    assert set(net.state_dict()) == expected | {"log_std_min", "log_std_max"}
    assert len(net.state_dict()) == 201


def test_projector_counts() -> None:
    counts = [sum(p.numel() for p in ScalarProjector(i, 896).parameters()) for i in (1, 8)]
    assert counts == [805_504, 811_776]


def test_position_table_is_sine_then_cosine() -> None:
    table = position_table(8, 512)
    assert table[0, :256].abs().max() == 0
    assert (table[0, 256:] == 1).all()
    assert table[3, 1].item() == pytest.approx(torch.tensor(3 * 10000 ** (-1 / 256)).sin().item())


def test_time_features_are_cosine_first_and_not_scaled() -> None:
    dit = small_dit()
    seen = {}
    dit.t_embedder.mlp[0].register_forward_hook(lambda _m, x, _y: seen.update(features=x[0]))
    dit.t_embedder(torch.tensor([0.5]))
    frequencies = 10000 ** (-torch.arange(4) / 4)
    expected = torch.cat([(0.5 * frequencies).cos(), (0.5 * frequencies).sin()])
    torch.testing.assert_close(seen["features"][0], expected)


def test_dead_cross_attention_does_not_change_the_output_and_is_not_trained() -> None:
    projected, time, conditions, dit = inputs()
    before = dit(projected, time, conditions)
    live = {id(p) for p in dit.live_parameters()}
    dead = list(dit.blocks[1].cross_attn.parameters())
    assert not any(id(p) in live for p in dead)
    assert len(live) == sum(p.requires_grad for p in dit.parameters()) - len(dead)
    with torch.no_grad():
        for parameter in dead:
            parameter += 1.0
    assert torch.equal(before, dit(projected, time, conditions))
    with torch.no_grad():
        dit.blocks[2].cross_attn.attn.out_v_proj.bias += 1.0
    assert not torch.equal(before, dit(projected, time, conditions))


def test_every_live_parameter_receives_a_gradient() -> None:
    projected, time, conditions, dit = inputs()
    dit(projected, time, conditions).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in dit.live_parameters())


def test_broadcast_context_equals_a_copy_per_rollout() -> None:
    dit = small_dit()
    context, state = torch.randn(2, 5, CONTEXT), torch.randn(2, PROJECTED)
    projected, time = torch.randn(2, 3, T, A * PROJECTED), torch.tensor([0.7])
    shared = dit(projected, time, dit.prepare(context, state))
    copied = dit.prepare(context.repeat_interleave(3, 0), state.repeat_interleave(3, 0))
    flat = dit(projected.flatten(0, 1)[:, None], time, copied)
    torch.testing.assert_close(shared.flatten(0, 1), flat[:, 0])


def test_cross_attention_equals_the_written_out_formula() -> None:
    dit = small_dit()
    cross = dit.blocks[0].cross_attn
    x, context = torch.randn(2, 1, T, 16), torch.randn(2, 5, 16)
    attn = cross.attn
    query = attn.v_proj(cross.layer_norm_v(x[:, 0])).view(2, T, 2, 8)
    normed = cross.layer_norm_l(context)
    keys, values = (f(normed).view(2, 5, 2, 8) for f in (attn.l_proj, attn.values_l_proj))
    weights = torch.einsum("bthd,bshd->bhts", query / 8**0.5, keys).softmax(-1)
    mixed = torch.einsum("bhts,bshd->bthd", weights, values).reshape(2, T, 16)
    expected = x[:, 0] + cross.gamma_v * attn.out_v_proj(mixed)
    torch.testing.assert_close(cross(x, cross.keys_values(context), 0.0)[:, 0], expected)


def test_fresh_head_is_zero_and_dropout_acts_only_on_request() -> None:
    dit = DiT(SMALL, T, A, PROJECTED, CONTEXT)
    conditions = dit.prepare(torch.randn(1, 5, CONTEXT), torch.randn(1, PROJECTED))
    x, time = torch.randn(1, 1, T, A * PROJECTED), torch.tensor([0.5])
    assert dit(x, time, conditions).abs().max() == 0
    projected, time, conditions, dit = inputs()
    dit.train()
    first, second = dit(projected, time, conditions), dit(projected, time, conditions)
    assert torch.equal(first, second)
    assert not torch.equal(first, dit(projected, time, conditions, 0.5))


def test_sigma_is_the_geometric_mean_at_initialisation_and_bounded_later() -> None:
    net = SigmaNet(DiT(SMALL, T, A, PROJECTED, CONTEXT), 0.08, 0.2)
    conditions = net.dit.prepare(torch.randn(2, 5, CONTEXT), torch.randn(2, PROJECTED))
    x, time = torch.randn(2, 3, T, A * PROJECTED), torch.tensor([0.5])
    sigma = net(x, time, conditions).exp()
    assert sigma.shape == (2, 3, T, A)
    assert (sigma - 0.12649).abs().max() < 5e-6
    for bias, bound in ((50.0, 0.2), (-50.0, 0.08)):
        with torch.no_grad():
            net.dit.final_layer.linear.bias.fill_(bias)
        assert (net(x, time, conditions).exp() - bound).abs().max() < 1e-6


def test_official_files_load_with_and_without_prefix_and_strictly() -> None:
    source, target = FlowHead(small_dit()), FlowHead(DiT(SMALL, T, A, PROJECTED, CONTEXT))
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    load_official(target, state, "action_head")
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)
    state.pop("module.flow_predictor.dit.final_layer.linear.bias")
    with pytest.raises(CheckpointError, match="missing 1"):
        load_official(target, state, "action_head")
    with pytest.raises(CheckpointError, match="only some keys"):
        load_official(target, {"module.a": torch.zeros(1), "b": torch.zeros(1)}, "action_head")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 20, "heads": 3}, "multiple"),
        ({"time_features": 7}, "odd"),
        ({"cross_blocks": [9]}, "outside"),
        ({"widht": 16}, "did you mean 'width'"),
    ],
)
def test_wrong_sizes_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(HeadConfig, values)
