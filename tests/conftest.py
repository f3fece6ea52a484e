"""Settings that have to stand before any test imports torch."""

from __future__ import annotations

import os

# The models are tiny: more threads than this only wait for each other. The kernels of the notebooks inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# A test that reaches for the network is a broken test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
