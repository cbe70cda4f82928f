"""The VLM context on tiny configurations, attention by name, LoRA, files; the paper's size."""

import importlib.machinery
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.models.policy_helpers import (
    MILK,
    PATCHES,
    QUERIES,
    STATISTICS,
    WIDTH,
    generator,
    observe,
    shaken,
    tiny_config,
)
from tests.models.policy_helpers import vlm_encoder as encoder
from vlarft.errors import BackendError, CheckpointError, ConfigError
from vlarft.models import attention as attention_module
from vlarft.models.attention import attention_reasons, require_attention
from vlarft.models.flow_policy import FlowPolicy, FlowPolicyConfig, build_policy
from vlarft.models.policy import Observation
from vlarft.models.vlm import PROMPT, VLMConfig, VLMEncoder


def test_paper_vlm_has_the_specified_size() -> None:
    with torch.device("meta"):
        paper = VLMEncoder(VLMConfig())
    assert paper.tokens == 320
    assert paper.width == 896
    count = {n: sum(p.numel() for p in m.parameters()) for n, m in paper.named_children()}
    assert count["projector"] == (2176 * 8704 + 8704) + (8704 * 896 + 896) + (896 * 896 + 896)
    assert count["language"] == 494_032_768  # Qwen2.5-0.5B without its tied output layer
    assert count["action_queries"] == 64 * 896
    assert sum(count.values()) == pytest.approx(1.25e9, rel=0.02)
    assert paper.language.config.rope_parameters["rope_theta"] == 1_000_000.0


def test_paper_policy_counts() -> None:
    with torch.device("meta"):
        vlm = VLMEncoder(VLMConfig())
        policy = FlowPolicy(FlowPolicyConfig.preset("paper"), STATISTICS, vlm)
    heads = {n: sum(p.numel() for p in m.parameters()) for n, m in policy.named_children()}
    assert heads["flow_head"] == heads["sigma_net"] == 51_289_095 + 4_096
    assert heads["noisy_action_projector"] == 805_504
    assert heads["proprio_projector"] == 811_776
    groups = policy.parameter_groups()
    dead = 3 * 1_053_184
    assert sum(p.numel() for p in groups["sigma"]) == 51_289_095 - dead


def test_vision_is_the_second_to_last_block_without_prefix_tokens() -> None:
    vlm = encoder()
    seen: dict[str, torch.Tensor] = {}

    def remember(name: str, output: object) -> None:
        seen[name] = output[0] if isinstance(output, tuple) else output  # type: ignore[assignment]

    blocks = [m for n, m in vlm.dino.named_modules() if n.endswith("layer.1")]
    blocks += [m for n, m in vlm.siglip.named_modules() if n.endswith("layers.1")]
    for name, block in zip(("dino", "siglip"), blocks, strict=True):
        block.register_forward_hook(lambda _m, _x, y, name=name: remember(name, y))
    features = vlm.vision(observe(2).image)
    assert features.shape == (2, PATCHES, 20)
    assert torch.equal(features[..., :8], seen["dino"][:, 3:])  # class token and two registers
    assert torch.equal(features[..., 8:], seen["siglip"])


def test_context_slices_are_one_position_early() -> None:
    vlm, observation = encoder(), observe(2)
    states: dict[str, torch.Tensor] = {}
    vlm.language.register_forward_hook(lambda _m, _x, y: states.update(last=y.last_hidden_state))
    context = vlm(observation)
    assert context.shape == (2, PATCHES + QUERIES, WIDTH)
    last = states["last"]
    assert torch.equal(context[:, :PATCHES], last[:, :PATCHES])
    for row, text in enumerate(observation.instruction):
        first = PATCHES + len(vlm._text_ids([text])[0])
        assert torch.equal(context[row, PATCHES:], last[row, first - 1 : first - 1 + QUERIES])


def test_sequence_is_token_patches_text_queries() -> None:
    vlm, observation = encoder(), observe(2)
    ids = vlm._text_ids(observation.instruction)
    assert len(ids[0]) != len(ids[1])
    sequence, queries_at = vlm._sequence(observation)
    embed = vlm.language.get_input_embeddings()
    patches = vlm.projector(vlm.vision(observation.image))
    for row, text in enumerate(ids):
        at = len(text) + PATCHES
        assert queries_at[row] == at
        assert torch.equal(sequence[row, :1], embed(torch.tensor(text[:1])))
        assert torch.equal(sequence[row, 1 : 1 + PATCHES], patches[row])
        assert torch.equal(sequence[row, 1 + PATCHES : at], embed(torch.tensor(text[1:])))
        assert torch.equal(sequence[row, at : at + QUERIES], vlm.action_queries.weight)


def test_a_scene_does_not_depend_on_its_neighbours_length() -> None:
    vlm, observation = encoder(), observe(2)
    together = vlm(observation)
    for row in range(2):
        torch.testing.assert_close(together[row : row + 1], vlm(observation.select([row])))


def test_prompt_is_qwens_and_the_instruction_is_lower_case() -> None:
    vlm, base = encoder(), observe(1)
    loud = Observation(base.image, base.proprioception, [MILK.upper()])
    assert torch.equal(vlm(base), vlm(loud))
    assert PROMPT.endswith("<|im_start|>assistant\n")
    assert "take to {instruction}?" in PROMPT


def test_lora_trains_adapters_projector_and_queries_and_merges_exactly() -> None:
    vlm, observation = encoder(lora_rank=2), observe(2)
    trained = [n for n, p in vlm.named_parameters() if p.requires_grad]
    towers = [n for n in trained if not n.startswith(("projector", "action_queries"))]
    assert all("lora_" in n for n in towers)
    assert {n.split(".")[0] for n in towers} == {"dino", "siglip", "language"}
    assert any(n.startswith("projector") for n in trained)
    assert "action_queries.weight" in trained
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    before = vlm(observation)
    vlm.merge_lora()
    assert vlm.config.lora_rank == 0
    assert not any("lora_" in n for n, _ in vlm.named_parameters())
    torch.testing.assert_close(vlm(observation), before, rtol=1e-4, atol=1e-5)
    assert set(vlm.state_dict()) == set(encoder().state_dict())


def test_added_lora_changes_nothing_at_first_and_is_the_only_one() -> None:
    vlm, observation = encoder(), observe(2)
    before = vlm(observation)
    vlm.add_lora(2, 16.0)
    assert (vlm.config.lora_rank, vlm.config.lora_alpha) == (2, 16.0)
    torch.testing.assert_close(vlm(observation), before)
    with pytest.raises(ConfigError, match="has LoRA of rank 2; merge it first"):
        vlm.add_lora(2, 16.0)


def test_folder_round_trip(tmp_path: Path) -> None:
    vlm, observation = encoder(), observe(2)
    vlm.save_pretrained(tmp_path)
    again = VLMEncoder.from_pretrained(tmp_path).eval()
    assert torch.equal(again(observation), vlm(observation))


def test_policy_with_a_vlm_samples_scores_and_round_trips(tmp_path: Path) -> None:
    config = FlowPolicyConfig.preset("tiny").model_copy(update={"encoder": tiny_config()})
    policy = shaken(FlowPolicy(config, STATISTICS, encoder()))
    observation = observe(2)
    proposal = policy.sample(observation, 3, generator())
    score = policy.log_prob(observation, proposal)
    assert torch.equal(score.log_prob, proposal.log_prob)
    policy.save_pretrained(tmp_path / "policy")
    again = FlowPolicy.from_pretrained(tmp_path / "policy")
    torch.testing.assert_close(again.act(observation), policy.act(observation))
    policy.save_pretrained(tmp_path / "policy")  # replacing keeps the tokenizer folder
    assert [f.name for f in tmp_path.iterdir()] == ["policy"]
    assert FlowPolicy.from_pretrained(tmp_path / "policy").encoder.tokenizer is not None


def test_a_policy_saved_after_merging_lora_loads_without_it(tmp_path: Path) -> None:
    encoder_config = tiny_config(lora_rank=2)
    config = FlowPolicyConfig.preset("tiny").model_copy(update={"encoder": encoder_config})
    policy = shaken(FlowPolicy(config, STATISTICS, encoder(lora_rank=2)))
    policy.save_pretrained(tmp_path / "adapters")
    observation = observe(2)
    chunk = FlowPolicy.from_pretrained(tmp_path / "adapters").act(observation)
    torch.testing.assert_close(chunk, policy.act(observation))
    policy.encoder.merge_lora()
    policy.save_pretrained(tmp_path / "merged")
    merged = FlowPolicy.from_pretrained(tmp_path / "merged")
    assert not any("lora_" in name for name in merged.state_dict())
    torch.testing.assert_close(merged.act(observation), chunk, rtol=1e-4, atol=1e-5)


def test_no_tokenizer_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(CheckpointError, match="tokenizer/"):
        VLMEncoder(tiny_config())(observe(1))


def test_patches_that_disagree_are_refused() -> None:
    siglip = tiny_config().siglip | {"patch_size": 16}
    with pytest.raises(ConfigError, match="8 and 16 px"):
        VLMEncoder(tiny_config(siglip=siglip))


def test_attention_is_refused_by_name_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_module.importlib.util, "find_spec", lambda _name: None)
    for name, package in (("flash-attn", "flash_attn"), ("xformers", "xformers")):
        with pytest.raises(BackendError, match=f"'{name}' is not available: package {package}"):
            VLMEncoder(tiny_config(attention=name))
    monkeypatch.setattr(attention_module.importlib.util, "find_spec", lambda _name: object())
    assert attention_reasons("flash-attn", "cuda", torch.bfloat16) == []
    with pytest.raises(BackendError, match="the model is on cpu; it takes float16 or bfloat16"):
        require_attention("flash-attn", "cpu", torch.float32)
    assert require_attention("sdpa", "cpu", torch.float32) == "sdpa"
    with pytest.raises(ConfigError, match="allowed: sdpa, flash-attn, xformers"):
        require_attention("eager")


def test_the_small_encoder_has_no_attention_to_choose(tmp_path: Path) -> None:
    build_policy("tiny", STATISTICS).save_pretrained(tmp_path / "policy")
    with pytest.raises(ConfigError, match="only a VLM encoder"):
        FlowPolicy.from_pretrained(tmp_path / "policy", attention="flash-attn")


def test_xformers_path_equals_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    """The glue to xformers, with its one operator replaced by its documented definition."""
    calls: list[bool] = []

    class LowerTriangularMask:
        pass

    def memory_efficient_attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_bias: LowerTriangularMask | None,
        p: float,
        scale: float | None,
    ) -> torch.Tensor:
        calls.append(attn_bias is not None)
        heads_first = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(
            *heads_first, is_causal=attn_bias is not None, dropout_p=p, scale=scale
        ).transpose(1, 2)

    package, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    package.__spec__ = importlib.machinery.ModuleSpec("xformers", None)
    ops.memory_efficient_attention = memory_efficient_attention  # type: ignore[attr-defined]
    ops.LowerTriangularMask = LowerTriangularMask  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    monkeypatch.setattr(
        attention_module,
        "attention_reasons",
        lambda name, *_: [] if name in ("sdpa", "xformers") else ["no"],
    )
    observation = observe(2)
    expected = encoder()(observation)
    found = encoder(attention="xformers")(observation)
    assert calls.count(True) == 2  # language layers are causal
    assert calls.count(False) == 6  # tower layers are not
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
