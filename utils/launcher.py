"""What `mlx.launch` tells a rank about the others: how many share this machine, and with it cores and memory.

The launcher sets `MLX_RANK` and names a file of addresses in `MLX_HOSTFILE`. A file that cannot be read says nothing
here; the group, which needs it, says what is wrong with it.
"""

import json
import os
from pathlib import Path


def ranks_here() -> int:
    """Ranks on this machine, this one among them; 1 without the launcher."""
    rank, hostfile = os.environ.get("MLX_RANK"), os.environ.get("MLX_HOSTFILE")
    if not rank or not hostfile:
        return 1
    try:
        addresses = [host[0].rpartition(":")[0] for host in json.loads(Path(hostfile).read_text())]
        return addresses.count(addresses[int(rank)])
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return 1
