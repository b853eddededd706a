# Zeroes, trims, and what block status says about them.
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
MIB = 1 << 20
size = h.get_size()
HOLE, ZERO = nbd.STATE_HOLE, nbd.STATE_ZERO

def extents(count, offset, flags=0):
    """The extents of a range, neighbours of one kind joined: [(bytes, flags)]."""
    found = []
    def collect(context, at, entries, error):
        assert context == "base:allocation" and at == offset, (context, at)
        for length, state in zip(entries[0::2], entries[1::2]):
            if found and found[-1][1] == state:
                found[-1] = (found[-1][0] + length, state)
            else:
                found.append((length, state))
    position = offset
    h.block_status(count, offset, collect, flags)
    return found

def walk(count, offset):
    """As extents, but asks again until the whole range is described."""
    found, end = [], offset + count
    while offset < end:
        part = extents(end - offset, offset)
        assert part and all(length > 0 for length, _ in part), part
        for length, state in part:
            length = min(length, end - offset)
            offset += length
            if found and found[-1][1] == state:
                found[-1] = (found[-1][0] + length, state)
            else:
                found.append((length, state))
            if offset == end:
                break
    return found

# A new volume is one hole.
assert walk(size, 0) == [(size, HOLE | ZERO)], walk(size, 0)
# Data is seen where it lies.
h.pwrite(b"\x5a" * 8192, MIB)
assert walk(4 * MIB, 0) == [(MIB, HOLE | ZERO), (8192, 0), (3 * MIB - 8192, HOLE | ZERO)], walk(4 * MIB, 0)
# One extent if one is asked for.
assert len(extents(4 * MIB, 0, nbd.CMD_FLAG_REQ_ONE)) == 1
# An unaligned question gets an answer about the bytes asked for.
assert sum(length for length, _ in walk(10000, MIB - 5000)) == 10000

# Trim frees whole blocks, and they read as zeroes here.
h.trim(8192, MIB)
assert h.pread(8192, MIB) == bytes(8192)
assert walk(4 * MIB, 0) == [(4 * MIB, HOLE | ZERO)], walk(4 * MIB, 0)

# Zeroes read as zeroes whatever the flags say, and never as data in block status.
h.pwrite(b"\xa5" * MIB, 2 * MIB)
h.zero(MIB // 2, 2 * MIB)
assert h.pread(MIB // 2, 2 * MIB) == bytes(MIB // 2)
assert h.pread(MIB // 2, 2 * MIB + MIB // 2) == b"\xa5" * (MIB // 2)
assert walk(MIB, 2 * MIB) == [(MIB // 2, HOLE | ZERO), (MIB // 2, 0)], walk(MIB, 2 * MIB)
h.zero(4096, 3 * MIB - 4096, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(4096, 3 * MIB - 4096) == bytes(4096)
for length, state in walk(4096, 3 * MIB - 4096):
    assert not state & HOLE, "NO_HOLE keeps the space"
# The whole volume in one request, as fast as it can.
h.zero(size, 0, nbd.CMD_FLAG_FAST_ZERO)
assert walk(size, 0) == [(size, HOLE | ZERO)], walk(size, 0)

# A structured read says the same: DF gives one piece, without it holes may come as holes.
h.pwrite(b"\x11" * 4096, 8 * MIB + 4096)
for flags in [0, nbd.CMD_FLAG_DF]:
    pieces = []
    def piece(data, offset, status, error):
        pieces.append((offset, len(data), status))
    data = h.pread_structured(65536, 8 * MIB, piece, flags)
    assert data == bytes(4096) + b"\x11" * 4096 + bytes(57344)
    assert sum(length for _, length, _ in pieces) == 65536, pieces
    if flags:
        assert len(pieces) == 1, pieces
# A hint to cache changes nothing.
h.cache(65536, 8 * MIB)
assert h.pread(4096, 8 * MIB + 4096) == b"\x11" * 4096
