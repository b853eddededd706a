//! libFuzzer on the target `nvme-tcp-authentication`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("nvme-tcp-authentication", data);
});
