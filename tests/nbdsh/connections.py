# Several connections: what one writes the others read at once; one's flush covers what all were answered.
assert h.can_multi_conn()
uri = h.get_uri()
others = []
for _ in range(4):
    other = nbd.NBD()
    other.connect_uri(uri)
    others.append(other)
connections = [h] + others

for turn in range(200):
    writer = connections[turn % 5]
    data = turn.to_bytes(4, "little") * 1500
    offset = turn * 6000 % 100000
    writer.pwrite(data, offset)
    for reader in connections:
        assert reader.pread(6000, offset) == data, f"turn {turn}"
others[0].flush()

# Many requests in flight on each connection, finished in any order.
for number, connection in enumerate(connections):
    for index in range(64):
        data = bytes([number * 64 + index & 255]) * 3000
        connection.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), (1 << 20) + (number * 64 + index) * 3000)
for connection in connections:
    while connection.aio_in_flight() > 0:
        connection.poll(-1)
        while connection.aio_in_flight() > 0 and (cookie := connection.aio_peek_command_completed()) > 0:
            connection.aio_command_completed(cookie)
for position in range(5 * 64):
    assert h.pread(3000, (1 << 20) + position * 3000) == bytes([position & 255]) * 3000, position

# A connection that disappears in the middle of a request harms nobody.
others[1].aio_pread(nbd.Buffer(1 << 20), 0)
del others[1]
del connections
assert others[1].pread(6000, 199 * 6000 % 100000) == (199).to_bytes(4, "little") * 1500
for other in others:
    other.shutdown()
assert h.pread(1, 0) is not None
