"""A trainer's process: `python trainer.py PORT WORLD NAME` makes its end of a group as SGLang's trainers do, and sends the tensors of files.

Each line on its standard input is a safetensors file, all of whose tensors it broadcasts in the order of their names.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

from safetensors.torch import load_file
from torch import distributed
from torch.distributed import distributed_c10d

PATIENCE = timedelta(seconds=60)


def main() -> None:
    port, world, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist: Any = distributed
    make: Any = distributed_c10d._new_process_group_helper
    store = dist.PrefixStore(name, dist.TCPStore("127.0.0.1", port, world, True, PATIENCE))
    group, _ = make(world, 0, [], "gloo", store, group_name=name, timeout=PATIENCE)
    for line in sys.stdin:
        options = dist.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        for _, tensor in sorted(load_file(line.strip()).items()):
            group.broadcast([tensor], options).wait()


if __name__ == "__main__":
    main()
