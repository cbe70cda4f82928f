import signal

import pytest


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt, even where a shell started the tests ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
