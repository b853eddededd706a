//! libFuzzer on the target `nvme-tcp-session`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("nvme-tcp-session", data);
});
