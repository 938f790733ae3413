"""A form asks with a GenerationRequest before torch is there."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "numpy", "diffusers", "transformers", "PIL", "huggingface_hub")


def test_requests_samplers_registry_and_identification_load_nothing_heavy():
    rooms = (
        "generation.request",
        "generation.samplers",
        "generation.files",
        "models.registry",
        "models.identify",
    )
    imports = "; ".join(f"import fastsd_lib.{room}" for room in rooms)
    code = f"{imports}; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
