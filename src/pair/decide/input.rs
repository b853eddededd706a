//! What a node sees of one pool: small enumerations, so that a test can try every combination.

/// An enumeration of a few values, each with the words by which people know it.
macro_rules! input {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $words:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The value for people.
            #[must_use]
            pub const fn words(self) -> &'static str {
                match self {
                    $(Self::$variant => $words,)+
                }
            }
        }
    };
}

input! {
    /// What this node is to the pool.
    Place {
        /// The pool's home node.
        Home = "home",
        /// The home node's partner.
        Away = "away",
    }
}

input! {
    /// Whom the register names as the pool's owner, as this node read it last.
    Owner {
        /// The arbiter does not answer, or what it holds is damaged.
        Unreadable = "unreadable",
        /// The arbiter answers and has no register of this pool.
        Absent = "absent",
        /// The arbiter answers with a register that is older than what this node knows of the pool, or with none although the pool was served by a pair: it
        /// is another one, or has the memory of another time.
        Outdated = "outdated",
        /// This node, at the epoch that this process has claimed, taken over or swapped in itself (rule R2).
        Held = "this node",
        /// This node, at another epoch: of an earlier life, or given back by the partner.
        Unclaimed = "this node, not claimed",
        /// The partner.
        Partner = "the partner",
    }
}

input! {
    /// What the register says of the log of the node that does not own the pool. Means nothing while the register cannot be read or is absent.
    Mirror {
        /// It may lack answered changes.
        Stale = "stale",
        /// It has every answered change, and as far as this node knows it is the portion that lies there now: one that cannot be read may be.
        Named = "in sync",
        /// The register names a portion as in sync, and the node has another one now: it was lost or replaced.
        Other = "in sync, but replaced",
    }
}

input! {
    /// What this process does with the pool.
    Open {
        /// Nothing, since it started, or since it stopped serving at once.
        Closed = "closed",
        /// It recovers the pool from its own portion.
        Opening = "opening",
        /// It answers.
        Serving = "serving",
        /// It finishes what was admitted, takes a last consistency point and closes.
        Draining = "draining",
        /// It has done so, at the epoch that it holds: nothing lies above the consistency point.
        Drained = "drained",
        /// Nothing: it could not be opened, several times in a row. As the owner the process opens it no more before it has claimed it anew; beside an owner it
        /// mirrors, and takes the pool over only when it is told to, or when the owner cannot serve it either.
        Yielded = "given up",
        /// A failure has stopped it: nothing is answered any more in this process's life.
        Failed = "failed",
    }
}

input! {
    /// What a reply of this node waits for (rule R1). Means nothing while it answers nothing.
    Replies {
        /// For its own portion only.
        Alone = "alone",
        /// For both portions.
        Mirrored = "mirrored",
    }
}

input! {
    /// The interconnect. It is up once the partner has been recognised and has said its word over the pool.
    Link {
        /// The partner answers on at least one path.
        Up = "up",
        /// It does not, for less than the detection time.
        Interrupted = "interrupted",
        /// It does not, for longer.
        Cut = "cut",
    }
}

input! {
    /// What the partner has said of the pool over the interconnect. A word said at another epoch than this node's register counts as `Unknown`.
    Word {
        /// Nothing.
        Unknown = "unknown",
        /// It will have it open, or be ready, soon: it has just started, or it recovers the pool.
        Starting = "starting",
        /// It does not have the pool open, and will not open it at this epoch. Its portion takes a mirror, unless it is the owner, which then
        /// gives the pool up.
        Standby = "standby",
        /// As `Standby`, and its portion follows this node's log at this epoch. To the owner it means `Standby` until its own resync has got so
        /// far that replies can wait for the mirror.
        Mirroring = "mirroring",
        /// It answers.
        Serving = "serving",
        /// It is on its way out: draining, or not to be used for now.
        Leaving = "leaving",
    }
}

input! {
    /// The partner's heartbeat at the arbiter.
    Beat {
        /// It has changed within the detection time.
        Alive = "alive",
        /// It has not, or the arbiter cannot be read.
        Silent = "silent",
    }
}

input! {
    /// What is known of the fence. A result counts for the epoch at which it was asked for; at another one it is `NotTried`.
    Fence {
        /// Nothing was tried.
        NotTried = "not tried",
        /// The look at the lock of the partner's process did not confirm: it holds it, or there is none to look at.
        Held = "held by the partner",
        /// The partner can write no more.
        Confirmed = "confirmed",
        /// Every configured kind was tried and none could confirm.
        Failed = "failed",
    }
}

input! {
    /// This node's portion.
    Portion {
        /// The register names this node as owner: it is the owner's portion according to the register. Else: it can take a mirror.
        Usable = "usable",
        /// It is another one, cannot be read, or holds records that must not be performed (rule R7).
        Void = "void",
    }
}

input! {
    /// What was asked for, by a person or by a timer that a person has set.
    Command {
        /// Nothing.
        None = "none",
        /// Become the owner, without loss.
        Takeover = "takeover",
        /// Become the owner, whatever is lost.
        Forced = "forced takeover",
        /// Hand the pool to the partner.
        Giveback = "giveback",
        /// Hand the pool to the partner, which keeps it: this node, its home, is about to be maintained.
        Drain = "drain",
        /// Nothing, and the home node's partner keeps the pool: the home node was drained, as the register says, or has given the pool up in its present life.
        Keep = "keep",
    }
}

input! {
    /// This node's lease for the pool, on its own monotonic clock (rule R2).
    Lease {
        /// Some of it is left.
        Left = "left",
        /// It has ended, or there never was one.
        Ended = "ended",
    }
}

/// Everything that a decision depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each field is its type")]
pub struct View {
    pub place: Place,
    pub owner: Owner,
    pub mirror: Mirror,
    pub open: Open,
    pub replies: Replies,
    pub link: Link,
    pub word: Word,
    pub beat: Beat,
    pub fence: Fence,
    pub portion: Portion,
    pub command: Command,
    pub lease: Lease,
}

impl View {
    /// The [word](own_word) that this node says to its partner.
    #[must_use]
    pub fn own_word(&self, is_mirroring: bool) -> Word {
        own_word((self.open, self.owner, self.portion), is_mirroring)
    }
}

/// The word that a node says to its partner, with the epoch of its register. `is_mirroring`: its portion follows the owner's log at that epoch.
#[must_use]
pub fn own_word((open, owner, portion): (Open, Owner, Portion), is_mirroring: bool) -> Word {
    match (open, owner, portion) {
        (Open::Opening, _, _) => Word::Starting,
        (Open::Serving, _, _) => Word::Serving,
        (Open::Draining, _, _) => Word::Leaving,
        // It gives the pool up: it cannot open it, and the partner may.
        (Open::Failed | Open::Yielded, Owner::Held | Owner::Unclaimed, _) => Word::Standby,
        (Open::Failed, _, _) => Word::Leaving,
        (Open::Closed | Open::Drained, Owner::Held | Owner::Unclaimed, Portion::Void) => Word::Standby,
        (Open::Closed | Open::Drained, Owner::Held | Owner::Unclaimed, Portion::Usable) => Word::Starting,
        (Open::Closed | Open::Drained | Open::Yielded, Owner::Unreadable, _) => Word::Starting,
        (Open::Closed | Open::Drained | Open::Yielded, Owner::Absent | Owner::Outdated, _) => Word::Standby,
        (Open::Closed | Open::Drained | Open::Yielded, Owner::Partner, Portion::Void) => Word::Starting,
        (Open::Closed | Open::Drained | Open::Yielded, Owner::Partner, Portion::Usable) => {
            if is_mirroring {
                Word::Mirroring
            } else {
                Word::Standby
            }
        }
    }
}
