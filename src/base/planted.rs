//! Planted bugs: deliberate defects that prove the simulator can find such defects. Compiled in only with the feature `planted-bugs`.
//!
//! A bug is chosen by name for one thread, or for a whole process; several that only together do harm are joined by `+`. `docs/testing.md` lists them
//! with the oracle that catches each.

#[cfg(feature = "planted-bugs")]
use std::{cell::Cell, sync::OnceLock};

#[cfg(feature = "planted-bugs")]
mod chosen {
    use std::cell::Cell;
    thread_local! {
        /// The name, and whether it is several that are joined.
        pub(super) static BUG: Cell<(&'static str, bool)> = const { Cell::new(("", false)) };
    }
}

/// Puts the bug called `name` in force for this thread; the empty name: none.
#[cfg(feature = "planted-bugs")]
pub fn choose(name: &'static str) {
    chosen::BUG.with(|bug| bug.set((name, name.contains('+'))));
}

/// What is in force on every thread that has chosen nothing.
#[cfg(feature = "planted-bugs")]
static PROCESS: OnceLock<String> = OnceLock::new();

/// Puts the bug called `name` in force for this process. The first call counts.
#[cfg(feature = "planted-bugs")]
pub fn choose_for_process(name: String) {
    let _ = PROCESS.set(name);
}

/// What is in force for this thread, for threads that go on with its work.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn chosen() -> &'static str {
    chosen::BUG.with(Cell::get).0
}

/// Whether the bug called `name` is in force.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn is(name: &str) -> bool {
    // Asked dozens of times in a turn: names are taken apart only where there are several.
    match chosen::BUG.with(Cell::get) {
        ("", _) => PROCESS.get().is_some_and(|chosen| is_among(chosen, name)),
        (chosen, true) => is_among(chosen, name),
        (chosen, false) => chosen == name,
    }
}

#[cfg(feature = "planted-bugs")]
fn is_among(chosen: &str, name: &str) -> bool {
    chosen.split('+').any(|chosen| chosen == name)
}

/// Whether the bug called `name` is in force: never, in this build.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
#[inline(always)]
pub const fn is(_name: &str) -> bool {
    false
}
