"""Where kernels run in these tests: on the GPU when there is one, else in Triton's interpreter."""

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
