//! Planted bugs: deliberate defects that prove the simulator can find such defects. Compiled in only with the feature `planted-bugs`.
//!
//! A bug is chosen by name for one thread; several that only together do harm are joined by `+`. `docs/testing.md` lists them with the oracle that catches each.

#[cfg(feature = "planted-bugs")]
use std::cell::Cell;

#[cfg(feature = "planted-bugs")]
mod chosen {
    use std::cell::Cell;
    thread_local! {
        pub(super) static BUG: Cell<&'static str> = const { Cell::new("") };
    }
}

/// Puts the bug called `name` in force for this thread; the empty name: none.
#[cfg(feature = "planted-bugs")]
pub fn choose(name: &'static str) {
    chosen::BUG.with(|bug| bug.set(name));
}

/// What is in force for this thread, for threads that go on with its work.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn chosen() -> &'static str {
    chosen::BUG.with(Cell::get)
}

/// Whether the bug called `name` is in force.
#[cfg(feature = "planted-bugs")]
#[must_use]
pub fn is(name: &str) -> bool {
    chosen::BUG.with(|bug| bug.get().split('+').any(|chosen| chosen == name))
}

/// Whether the bug called `name` is in force: never, in this build.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
#[inline(always)]
pub const fn is(_name: &str) -> bool {
    false
}
