"""The table engine alone: lookup, and lookup with backward pass and row-wise Adagrad update.

python benchmarks/training/tables.py [--threads 2] [--rounds 10] [--rows 100000 1000000]

Contenders take turns within a round, so that a busy machine slows all of them. nn.EmbeddingBag has
no row-wise Adagrad; it runs torch's sparse Adagrad, which keeps a sum per value, not per row.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.full import full_tables
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec

NUM_FEATURES, BATCH_SIZE, WIDTH, NUM_BATCHES = 26, 4096, 16, 4
ZIPF_EXPONENT = 1.05
Run = Callable[[int], None]


def zipf_ids(num_rows: int, generator: torch.Generator) -> Tensor:
    """Return ids (F, B), row 0 the most frequent."""
    u = torch.rand(NUM_FEATURES, BATCH_SIZE, generator=generator, dtype=torch.float64)
    power = 1 - ZIPF_EXPONENT
    ranks = (u * ((num_rows + 1) ** power - 1) + 1) ** (1 / power) - 1
    return ranks.long().clamp(0, num_rows - 1)


def recemb_runs(backend: str, num_rows: int, batches: list[KeyedJaggedTensor]) -> tuple[Run, Run]:
    specs = [
        TableSpec(
            name=f"t{f}", num_embeddings=num_rows, embedding_dim=WIDTH, feature_names=(f"f{f}",)
        )
        for f in range(NUM_FEATURES)
    ]
    optimizer = TableOptimizer(kind="rowwise_adagrad", learning_rate=0.02)
    tables = full_tables(specs, optimizer=optimizer, backend=backend)
    grad = torch.randn(BATCH_SIZE, NUM_FEATURES * WIDTH) * 1e-3

    def forward(k: int) -> None:
        with torch.no_grad():
            tables(batches[k])

    return forward, lambda k: tables(batches[k]).values().backward(grad)


def fbgemm_runs(num_rows: int, batches: list[KeyedJaggedTensor]) -> tuple[Run, Run]:
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        OptimType,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(num_rows, WIDTH, EmbeddingLocation.HOST, ComputeDevice.CPU)] * NUM_FEATURES,
        optimizer=OptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.02,
        eps=1e-8,
    )
    tables.init_embedding_weights_uniform(-0.01, 0.01)
    grad = torch.randn(BATCH_SIZE, NUM_FEATURES * WIDTH) * 1e-3

    def forward(k: int) -> None:
        with torch.no_grad():
            tables(batches[k].values(), batches[k].offsets())

    return forward, lambda k: tables(batches[k].values(), batches[k].offsets()).backward(grad)


def embedding_bag_runs(num_rows: int, batches: list[KeyedJaggedTensor]) -> tuple[Run, Run]:
    bags = nn.ModuleList(
        nn.EmbeddingBag(num_rows, WIDTH, mode="sum", sparse=True) for _ in range(NUM_FEATURES)
    )
    optimizer = torch.optim.Adagrad(bags.parameters(), lr=0.02)
    grad = torch.randn(BATCH_SIZE, NUM_FEATURES * WIDTH) * 1e-3
    ids = [b.values().view(NUM_FEATURES, BATCH_SIZE, 1) for b in batches]

    def look_up(k: int) -> Tensor:
        return torch.cat([bag(i) for bag, i in zip(bags, ids[k], strict=True)], dim=1)

    def forward(k: int) -> None:
        with torch.no_grad():
            look_up(k)

    def step(k: int) -> None:
        optimizer.zero_grad()
        look_up(k).backward(grad)
        optimizer.step()

    return forward, step


def measure(runs: dict[str, Run], num_rounds: int) -> dict[str, float]:
    """Return the median seconds of each, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(num_rounds + 1):
        for name, run in runs.items():
            for k in range(NUM_BATCHES):
                start = time.perf_counter()
                run(k)
                if turn > 0:
                    seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(its) for name, its in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {options.threads} threads, B={BATCH_SIZE}, D={WIDTH}, L=1")
    print("| rows per feature | what | contender | median ms | times recemb auto |")
    print("|---:|---|---|---:|---:|")
    for num_rows in options.rows:
        generator = torch.Generator().manual_seed(0)
        batches = [
            KeyedJaggedTensor(
                keys=[f"f{f}" for f in range(NUM_FEATURES)],
                values=zipf_ids(num_rows, generator).view(-1),
                lengths=torch.ones(NUM_FEATURES * BATCH_SIZE, dtype=torch.int32),
            )
            for _ in range(NUM_BATCHES)
        ]
        contenders = {
            "recemb auto": recemb_runs("auto", num_rows, batches),
            "recemb torch": recemb_runs("torch", num_rows, batches),
            "FBGEMM module": fbgemm_runs(num_rows, batches),
            "nn.EmbeddingBag": embedding_bag_runs(num_rows, batches),
        }
        for index, what in enumerate(("forward", "forward, backward, update")):
            medians = measure({n: runs[index] for n, runs in contenders.items()}, options.rounds)
            for name, median in medians.items():
                ratio = median / medians["recemb auto"]
                print(f"| {num_rows:,} | {what} | {name} | {median * 1e3:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
