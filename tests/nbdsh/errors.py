# What the protocol calls errors, sent past the client's own checks; the connection stays usable after each.
import errno
h.set_strict_mode(0)
size = h.get_size()

def refused(expected, operation, *arguments):
    try:
        operation(*arguments)
    except nbd.Error as error:
        assert error.errnum in expected, f"{operation.__name__}{arguments}: {error}"
    else:
        raise AssertionError(f"{operation.__name__}{arguments} succeeded")
    h.pwrite(b"alive", 77)
    assert h.pread(5, 77) == b"alive"

BEYOND = [errno.EINVAL, errno.ENOSPC]
refused([errno.EINVAL], h.pread, 1, size)
refused([errno.EINVAL], h.pread, 4096, size - 4095)
refused(BEYOND, h.pwrite, b"x", size)
refused(BEYOND, h.pwrite, b"x" * 4096, size - 1)
refused(BEYOND, h.zero, 2, size - 1)
refused(BEYOND, h.trim, 2, size - 1)
refused([errno.EINVAL], h.pread, 512, (1 << 63) - 512)
refused(BEYOND, h.pwrite, b"x" * 512, (1 << 63) - 512)
refused([errno.EINVAL], h.block_status, 512, size, lambda *_: 0)
# Flags that do not exist.
refused([errno.EINVAL], h.pwrite, b"x", 0, 1 << 9)
