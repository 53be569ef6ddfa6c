"""Several processes as one: process groups and the sum over them. Sees trees of arrays, never a model.

Adding a kind of group: a config in `distributed/` whose `build` returns a `ProcessGroup`, and a row here.
"""

DISTRIBUTED = {
    "single": "distributed.group:SingleConfig",
    "data_parallel": "distributed.group:DataParallelConfig",
}
