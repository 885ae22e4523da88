"""Eight virtual CPU devices for every test, before anything imports JAX."""

import os

FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Tests compile much and run little.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
given = os.environ.get("XLA_FLAGS", "")
missing = [flag for flag in FLAGS if flag.split("=")[0] not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *missing]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
