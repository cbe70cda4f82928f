"""`vlarft info`: everything that cannot run says why."""

import importlib.util
import json

import pytest

from vlarft import info as module


def test_info_is_plain_json_and_complete():
    content = json.loads(json.dumps(module.info()))
    names = [entry["name"] for entry in content["capabilities"]]
    assert names == [
        "native", "cuda", "native-cuda", "triton", "flash-attn", "xformers", "libero simulator",
    ]  # fmt: skip
    for entry in content["capabilities"]:
        assert entry["available"] == (not entry["reasons"])
        assert entry["available"] == bool(entry["detail"])
    assert content["build"] is not None
    assert content["machine"]["cores"] >= 1


def test_every_reason_is_printed():
    content = module.info()
    text = module.render_info(content)
    for entry in content["capabilities"]:
        assert entry["name"] in text
        for reason in entry["reasons"]:
            assert reason in text


def missing(monkeypatch, *names):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in names else found(name)
    )


def test_missing_native_module_is_said(monkeypatch):
    missing(monkeypatch, "vlarft._native")
    content = module.info()
    entries = {entry["name"]: entry for entry in content["capabilities"]}
    assert content["build"] is None
    assert entries["native"]["reasons"] == ["vlarft._native is not built; run: pip install -e ."]
    assert "vlarft._native is not built" in entries["native-cuda"]["reasons"]
    assert "native build  none" in module.render_info(content)


def test_missing_packages_name_their_extra(monkeypatch):
    missing(monkeypatch, "triton", "flash_attn", "xformers", *module.LIBERO_PACKAGES)
    reasons = {c.name: " ".join(c.reasons) for c in module.capabilities()}
    assert "vlarft[triton]" in reasons["triton"]
    assert "vlarft[flash]" in reasons["flash-attn"]
    assert "vlarft[xformers]" in reasons["xformers"]
    assert "packages libero, robosuite, mujoco, bddl" in reasons["libero simulator"]
    assert "vlarft[libero]" in reasons["libero simulator"]


@pytest.mark.parametrize(("version", "works"), [("2.3.7", True), ("3.3.7", True), ("3.4.0", False)])
def test_mujoco_versions(monkeypatch, version, works):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(module.importlib.metadata, "version", lambda _: version)
    monkeypatch.setattr(module.ctypes.util, "find_library", lambda _: "libEGL.so.1")
    simulator = next(c for c in module.capabilities() if c.name == "libero simulator")
    assert simulator.available == works
    assert version in " ".join((simulator.detail, *simulator.reasons))


def test_missing_egl_is_said(monkeypatch):
    monkeypatch.setattr(module.ctypes.util, "find_library", lambda _: None)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    simulator = next(c for c in module.capabilities() if c.name == "libero simulator")
    assert any("libEGL" in reason for reason in simulator.reasons)
