//! Files, block devices and sockets through one io_uring per reactor.
