"""The networks: tensors in, tensors out."""

import os

# Before torch loads OpenMP: threads that spin while they wait turn a busy machine's 100 ms into a second.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
