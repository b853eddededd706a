//! libFuzzer on the target `nvme-tcp-unit`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("nvme-tcp-unit", data);
});
