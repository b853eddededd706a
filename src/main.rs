//! The program `twinlog`.

fn main() {
    println!("twinlog {} ({})", env!("CARGO_PKG_VERSION"), env!("TWINLOG_COMMIT"));
}
