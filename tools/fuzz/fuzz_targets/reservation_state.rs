//! libFuzzer on the target `reservation-state`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    twinlog_fuzz::run("reservation-state", data);
});
