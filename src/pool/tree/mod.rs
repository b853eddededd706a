//! Block trees: the one structure that everything in a pool hangs on. Read by walking, changed by copy on write.

pub mod dirty;
mod leaf;
pub mod update;
pub mod walk;

pub use dirty::{Dirty, DirtyBlock, DirtyLookup};
pub use update::{Aux, TreeUpdate, UpdateResult};
pub use walk::{Walk, Walker, child_index, levels_for, missing_node, span, walk};
