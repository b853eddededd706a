//! What has happened on a node, for people and programs that follow it: the newest log events of level info and above, kept in memory.
//!
//! The same events go to the log ([`super::logging`]); this is the way to have them without reading a file. They do not outlive the process:
//! its `life` tells a reader that the numbers began anew.

#![expect(clippy::disallowed_types, reason = "events are rare, and each is written to a locked stream anyway")]

use crate::node::admin::{AdminReply, NodeEvent};
use serde_json::Value;
use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};
use tracing::{Event as LogEvent, Level, Subscriber, field::Field, field::Visit};
use tracing_subscriber::layer::{Context, Layer};

/// Events that are kept: a pair that takes over and gives back logs some fifty.
pub const EVENTS_MAX: usize = 4096;
/// Events of one answer.
pub const EVENTS_PER_ANSWER_MAX: usize = 512;

/// The newest events of this process.
#[derive(Clone, Debug, Default)]
pub struct EventLog {
    kept: Arc<Mutex<Kept>>,
    life: u64,
}

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    events: VecDeque<NodeEvent>,
}

impl EventLog {
    /// No event yet; `life` tells this process's events from those of an earlier one.
    #[must_use]
    pub fn new(life: u64) -> Self {
        Self { life, ..Self::default() }
    }

    /// Events after number `after`, the oldest first, and the number of the last one that happened.
    #[must_use]
    pub fn after(&self, after: u64) -> AdminReply {
        let kept = self.kept();
        let later = kept.events.iter().filter(|event| event.sequence > after);
        let events = later.take(EVENTS_PER_ANSWER_MAX).cloned().collect();
        AdminReply::Events { life: self.life, events, last: kept.last }
    }

    fn keep(&self, event: NodeEvent) {
        let mut kept = self.kept();
        kept.last += 1;
        let sequence = kept.last;
        if kept.events.len() == EVENTS_MAX {
            kept.events.pop_front();
        }
        kept.events.push_back(NodeEvent { sequence, ..event });
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing panics while it is held.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for EventLog {
    #[expect(clippy::disallowed_methods, reason = "the time of a log line, as the log itself writes it")]
    fn on_event(&self, event: &LogEvent<'_>, _context: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            _ => return,
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let mut kept = NodeEvent { time_ns, level: level.to_owned(), ..NodeEvent::default() };
        event.record(&mut Fields(&mut kept));
        self.keep(kept);
    }
}

/// Takes the fields of a log event; `message` is what happened.
struct Fields<'a>(&'a mut NodeEvent);

impl Fields<'_> {
    fn insert(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.fields.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.0.event = text;
        } else {
            self.insert(field, text);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    fn parts(reply: AdminReply) -> (Vec<NodeEvent>, u64) {
        let AdminReply::Events { life: 9, events, last } = reply else { panic!("{reply:?}") };
        (events, last)
    }

    fn log(events: usize) -> EventLog {
        let log = EventLog::new(9);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(log.clone()), || {
            for number in 0..events {
                tracing::info!(number, pool = "a", is_so = true, reason = ?Some(1), "something");
                tracing::debug!("not this");
            }
        });
        log
    }

    #[test]
    fn events_are_kept_with_their_fields() {
        let (events, last) = parts(log(3).after(1));
        assert_eq!((events.len(), last), (2, 3));
        let event = &events[0];
        assert_eq!((event.sequence, event.level.as_str(), event.event.as_str()), (2, "info", "something"));
        assert_eq!(
            Value::Object(event.fields.clone()),
            serde_json::json!({ "number": 1, "pool": "a", "is_so": true, "reason": "Some(1)" })
        );
        assert!(event.time_ns > 0);
    }

    #[test]
    fn what_is_kept_and_what_is_answered_is_bounded() {
        let log = log(EVENTS_MAX + 7);
        let (events, last) = parts(log.after(0));
        assert_eq!((events.len(), events[0].sequence), (EVENTS_PER_ANSWER_MAX, 8));
        assert_eq!(last, (EVENTS_MAX + 7) as u64);
        assert_eq!(parts(log.after(last)).0, []);
    }
}
