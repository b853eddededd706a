//! Devices, superblocks and the verified block store.
