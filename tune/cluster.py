"""What an existing Ray cluster has."""

import logging

from myllm.errors import InputError


def cluster_resources(address: str) -> tuple[int, int]:
    """(CPU cores, GPUs) of the Ray cluster at `address`. Raises InputError where none answers."""
    import ray

    import tune.runner  # noqa: F401 (sets Ray's environment)

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, ValueError, RuntimeError):
        raise InputError(f"--address {address}: no Ray cluster answers there; start one with `ray start --head`") from None
    found = ray.cluster_resources()
    ray.shutdown()
    return int(found.get("CPU", 0)), int(found.get("GPU", 0))
