"""The readable specification of every engine stage in plain PyTorch: `backend="reference"`."""
