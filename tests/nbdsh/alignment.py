# Reads, writes, zeroes and trims that begin and end anywhere, against a model in memory.
import random

seed = random.randrange(1 << 32)
print(f"seed {seed}")
rng = random.Random(seed)
size = h.get_size()
assert size == 64 << 20, size
window = 1 << 20
model = bytearray(window)

def place():
    """Where an operation begins and how long it is: near block borders more often than not."""
    start = rng.randrange(window)
    if rng.random() < 0.6:
        start = max(0, start // 4096 * 4096 + rng.choice([-513, -1, 0, 1, 511, 512]))
    length = rng.choice([1, 2, 511, 512, 513, 4095, 4096, 4097, 8192, 12288, 65536, rng.randrange(1, 200000)])
    return start, min(length, window - start)

for step in range(600):
    start, length = place()
    if length == 0:
        continue
    kind = rng.random()
    if kind < 0.5:
        data = rng.randbytes(length)
        h.pwrite(data, start, nbd.CMD_FLAG_FUA if rng.random() < 0.05 else 0)
        model[start:start + length] = data
    elif kind < 0.65:
        h.zero(length, start, rng.choice([0, nbd.CMD_FLAG_NO_HOLE]))
        model[start:start + length] = bytes(length)
    elif kind < 0.72:
        h.trim(length, start)
        # Trimmed bytes may read as anything until written again: write them again.
        data = rng.randbytes(length)
        h.pwrite(data, start)
        model[start:start + length] = data
    elif kind < 0.75:
        h.flush()
    got = h.pread(length, start)
    assert got == model[start:start + length], f"seed {seed} step {step}: {start}+{length}"

assert h.pread(window, 0) == model, f"seed {seed}: the whole window"
# Neighbours of a trim keep their bytes.
for start, length in [(1, 4095), (4095, 2), (100, 10000), (4096, 8191)]:
    before = bytearray(h.pread(32768, 0))
    h.trim(length, start)
    after = h.pread(32768, 0)
    assert after[:start] == before[:start] and after[start + length:] == before[start + length:], (start, length)
# The last byte, and the largest request.
h.pwrite(b"z", size - 1)
assert h.pread(1, size - 1) == b"z"
large = rng.randbytes(32 << 20)
h.pwrite(large, 12345)
assert h.pread(32 << 20, 12345) == large, "32 MiB at an odd offset"
