"""One rank of PyTorch's gloo under `muster bench`. It waits for commands on a pipe of its own, so that it uses no
processor while another library is measured. See src/commands/bench/contestant.rs."""

import ctypes
import os
import sys
import time

folder = os.environ["MUSTER_BENCH_DIR"]
rank = int(os.environ["MUSTER_BENCH_RANK"])
world = int(os.environ["MUSTER_BENCH_WORLD"])
import torch
import torch.distributed as dist

ROOT = 0
DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "i8": torch.int8,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
}
REDUCTIONS = {
    "sum": dist.ReduceOp.SUM,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
    "product": dist.ReduceOp.PRODUCT,
}

data = ctypes.CDLL(os.path.join(os.path.dirname(os.path.abspath(__file__)), "libdata.so"))
size, word, pointer = ctypes.c_size_t, ctypes.c_uint64, ctypes.c_void_p
data.data_fill.argtypes = [pointer, ctypes.c_int, ctypes.c_int, size, size, word, word]
data.data_wrong_copied.argtypes = [pointer, ctypes.c_int, size, size, word, word]
data.data_wrong_copied.restype = size
data.data_wrong_reduced.argtypes = [pointer, ctypes.c_int, ctypes.c_int, size, size, word, word]
data.data_wrong_reduced.restype = size


def operation_of(name, reduction, given, got):
    """The one call that is timed, and which tensor it leaves its result in."""
    after, before = (rank + 1) % world, (rank - 1) % world

    def send_recv():
        requests = [dist.isend(given, after), dist.irecv(got, before)]
        for request in requests:
            request.wait()

    parts = list(got.chunk(world)) if got is not None else []
    return {
        "all_reduce": (lambda: dist.all_reduce(given, reduction), given),
        "reduce_scatter": (lambda: dist.reduce_scatter_tensor(got, given, reduction), got),
        "all_gather": (lambda: dist.all_gather_into_tensor(got, given), got),
        "broadcast": (lambda: dist.broadcast(given, ROOT), given),
        "reduce": (lambda: dist.reduce(given, ROOT, reduction), given),
        "gather": (lambda: dist.gather(given, parts if rank == ROOT else None, ROOT), got),
        "scatter": (lambda: dist.scatter(got, list(given.chunk(world)) if rank == ROOT else None, ROOT), got),
        "all_to_all": (lambda: dist.all_to_all_single(got, given), got),
        "send_recv": (send_recv, got),
        "barrier": (dist.barrier, given),
    }[name]


def wrong(name, dtype, content, result, count, seed):
    """How many elements are not as they should be after an operation."""
    part, at = count // world, result.data_ptr()
    reduced = lambda first, n: data.data_wrong_reduced(at, dtype, content, first, n, seed, world)
    copied = lambda first, n, source: data.data_wrong_copied(at, dtype, first, n, seed, source)
    if name == "all_reduce":
        return reduced(0, count)
    if name == "reduce_scatter":
        return reduced(rank * part, part)
    if name == "broadcast":
        return copied(0, count, ROOT)
    if name == "reduce":
        return reduced(0, count) if rank == ROOT else 0
    if name == "scatter":
        return copied(rank * part, part, ROOT)
    if name == "send_recv":
        return copied(0, count, (rank - 1) % world)
    if name == "barrier" or (name == "gather" and rank != ROOT):
        return 0
    first = rank * part if name == "all_to_all" else 0
    each = part * result.element_size()
    return sum(data.data_wrong_copied(at + source * each, dtype, first, part, seed, source) for source in range(world))


def run(words, buffers):
    name, dtype_name, reduction, _buffer, size, warmup, iterations, seed = words
    size, warmup, iterations, seed = int(size), int(warmup), int(iterations), int(seed)
    dtype = data.data_dtype(dtype_name.encode())
    content = data.data_content(name.encode(), reduction.encode())
    if not dtype or not content:
        raise ValueError("a type or reduction that this rival does not have")
    elements = [buffer.view(DTYPES[dtype_name]) for buffer in buffers]
    count = size // elements[0].element_size()
    part = count // world
    given = elements[0][: part if name in ("all_gather", "gather") else count]
    got = elements[1][: part if name in ("reduce_scatter", "scatter") else count]
    operate, result = operation_of(name, REDUCTIONS[reduction], given, got)
    address, elements_given = given.data_ptr(), given.numel()
    times, bad, clock = [], 0, time.monotonic_ns
    for iteration in range(warmup + iterations):
        data.data_fill(address, dtype, content, 0, elements_given, seed + iteration, rank)
        dist.barrier()
        started = clock()
        operate()
        ended = clock()
        # Where ranks share a processor, one that checks its result would keep another from ending.
        dist.barrier()
        bad += wrong(name, dtype, content, result, count, seed + iteration)
        if iteration >= warmup:
            times.append(ended - started)
    # No answer wakes the coordinator while a rank is still timing.
    dist.barrier()
    return f"times {bad} {' '.join(map(str, times))}"


def main():
    commands = open(f"{folder}/gloo-{rank}.in")
    answers = open(f"{folder}/gloo-{rank}.out", "w", buffering=1)
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/gloo-store", rank=rank, world_size=world)
        most = (int(os.environ["MUSTER_BENCH_BYTES"]) + 4095) // 8 * 8
        buffers = [torch.empty(most, dtype=torch.uint8), torch.empty(most, dtype=torch.uint8)]
        dist.barrier()
        if core := os.environ.get("MUSTER_BENCH_CORE"):
            # Only now, and only this thread: bound to one core with the library's own threads, it is five times slower.
            os.sched_setaffinity(0, {int(core)})
        print(f"ready 2 torch {torch.__version__} gloo, threads {torch.get_num_threads()}, TCP loopback", file=answers)
        for line in commands:
            words = line.split()
            if words[:1] != ["run"]:
                break
            print(run(words[1:], buffers), file=answers)
    except Exception as error:
        print(f"error {type(error).__name__}: {' '.join(str(error).split())}", file=answers)
        raise
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
