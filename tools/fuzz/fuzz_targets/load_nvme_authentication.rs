//! libFuzzer on the target `load-nvme-authentication`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("load-nvme-authentication", data);
});
