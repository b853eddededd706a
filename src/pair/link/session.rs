//! Channels and sessions: how they begin, what their own frames do, and how they end.

use super::{
    Event, HANDSHAKES_MAX, Link, Loss, PATHS_MAX, UNSENT_BYTES_MAX, agree,
    channel::{Arrived, Channel, Phase},
};
use crate::{
    base::Incarnation,
    pair::wire::{FrameError, Hello, Message, Refusal, RefusalReason, Role},
};
use twinlog_device::{ConnectionFailure, ConnectionId, ConnectionState, Network};

/// A session of both nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// The connecting node's number of it.
    pub(super) number: u64,
    /// The partner's life that it is with.
    partner: Incarnation,
}

impl Link {
    /// Takes connections of others, as long as few of them are still saying hello.
    pub(super) fn accept<N: Network>(&mut self, net: &mut N) {
        while let Some(accepted) = net.accept() {
            self.activity += 1;
            if self.is_stopped {
                net.close(accepted.connection, true);
                continue;
            }
            let greeting = |channel: &&Channel| channel.role == Role::Listens && !channel.is_open();
            let (proven, strangers): (Vec<&Channel>, Vec<&Channel>) =
                self.channels.iter().filter(greeting).partition(|channel| channel.is_proven());
            if proven.len() + strangers.len() >= HANDSHAKES_MAX {
                // Any of the strangers: one who connects again and again cannot choose to push the partner out.
                let victims = if strangers.is_empty() { proven } else { strangers };
                let victim = self.prng.pick(&victims).connection;
                self.history.stranger_count += 1;
                self.remove(net, victim, true);
            }
            let mut channel = Channel::new(accepted.connection, Role::Listens, accepted.peer, self.now);
            let hello = self.hello(Role::Listens, 0);
            channel.greet(net, hello, &mut self.scratch);
            self.channels.push(channel);
        }
    }

    /// What we say of ourselves on a new channel.
    fn hello(&mut self, role: Role, path: u8) -> Hello {
        self.challenge_count += 1;
        let random = self.prng.next_u64();
        let (mut session, mut connection) = (0, 0);
        if role == Role::Connects {
            self.connection_count += 1;
            (session, connection) = (self.session_number, self.connection_count);
        }
        let config = &self.config;
        Hello {
            role,
            path,
            features_required: 0,
            pair: config.pair,
            configuration: config.configuration,
            incarnation: config.incarnation,
            session,
            connection,
            challenge: config.key.challenge(config.incarnation, self.challenge_count, random),
            name: config.name.clone(),
            partner: config.partner.clone(),
            pools: config.pools.clone(),
        }
    }

    /// Starts to connect on paths that have rested long enough.
    pub(super) fn dial<N: Network>(&mut self, net: &mut N) {
        for path in 0..self.dials.len() {
            let dial = &mut self.dials[path];
            if self.is_stopped || dial.due().is_none_or(|due| due > self.now) {
                continue;
            }
            self.activity += 1;
            let connection = net.connect(&dial.address);
            dial.connection = Some(connection);
            let peer = dial.address.to_string();
            let mut channel = Channel::new(connection, Role::Connects, peer, self.now);
            channel.path = u8::try_from(path).expect("few paths");
            self.channels.push(channel);
        }
    }

    /// Looks at every connection: what has become of it, whether anything was heard, whether time is over.
    pub(super) fn look<N: Network>(&mut self, net: &mut N) {
        let mut connections = std::mem::take(&mut self.ready);
        connections.extend(self.channels.iter().map(|channel| channel.connection));
        for connection in connections.drain(..) {
            // Losing one can take others along.
            if self.channel(connection).is_some() {
                self.look_at(net, connection);
            }
        }
        self.ready = connections;
    }

    fn look_at<N: Network>(&mut self, net: &mut N, connection: ConnectionId) {
        let (now, timing) = (self.now, self.config.timing);
        let state = net.state(connection);
        let channel = self.channel_mut(connection).expect("the caller has looked");
        channel.listen(net, now);
        let (began, limit) = match channel.phase {
            Phase::Connecting => (channel.opened_at, timing.connect),
            Phase::Greeting | Phase::Proving | Phase::Agreeing => (channel.opened_at, timing.handshake),
            Phase::Open => (channel.heard_at, timing.silence),
        };
        let is_connected = matches!(state, ConnectionState::Open | ConnectionState::InputEnded);
        if channel.phase == Phase::Connecting && is_connected {
            return self.greet(net, connection);
        }
        // What had arrived before a connection ended is taken first.
        let waits = channel.phase != Phase::Connecting && channel.has_frame(net);
        match state {
            ConnectionState::Failed if !waits => {
                let failure = net.failure(connection).unwrap_or(ConnectionFailure::Reset);
                if failure == ConnectionFailure::Insecure {
                    self.report_refusal(
                        false,
                        Refusal { reason: RefusalReason::Encryption, text: failure.to_string() },
                    );
                }
                self.lose(net, connection, Loss::Broken(failure));
            }
            ConnectionState::InputEnded if !waits => self.lose(net, connection, Loss::Ended),
            _ if now.since(began) >= limit => self.lose(net, connection, Loss::Silent(limit)),
            _ => {}
        }
    }

    /// The network has connected: says hello.
    fn greet<N: Network>(&mut self, net: &mut N, connection: ConnectionId) {
        self.activity += 1;
        let path = self.channel(connection).expect("the caller has looked").path;
        let hello = self.hello(Role::Connects, path);
        let Self { channels, scratch, now, .. } = self;
        let channel = of(channels, connection);
        channel.opened_at = *now;
        channel.greet(net, hello, scratch);
    }

    /// Sends heartbeats that are due. Who does not take what we send has enough to hear.
    pub(super) fn beat<N: Network>(&mut self, net: &mut N) {
        for channel in self.channels.iter_mut().filter(|channel| channel.is_open() && channel.beat_due <= self.now) {
            channel.beat_due = self.now + self.config.timing.heartbeat;
            if net.unsent_bytes(channel.connection) < 2 * UNSENT_BYTES_MAX {
                channel.send_heartbeat(net, self.now, &mut self.scratch);
            }
        }
    }

    /// The next connection, in turn, on which a frame (or nonsense) waits.
    pub(super) fn next_ready<N: Network>(&mut self, net: &N) -> Option<ConnectionId> {
        self.budget = self.budget.checked_sub(1)?;
        let count = self.channels.len();
        let index = (0..count).map(|offset| (self.cursor + offset) % count).find(|&index| {
            let channel = &self.channels[index];
            channel.phase != Phase::Connecting && channel.has_frame(net)
        })?;
        self.cursor = index + 1;
        self.activity += 1;
        Some(self.channels[index].connection)
    }

    /// Takes the frame that waits on a connection; returns it if it is for the caller.
    pub(super) fn take_frame<N: Network>(&mut self, net: &mut N, connection: ConnectionId) -> Option<Arrived> {
        let channel = self.channel_mut(connection)?;
        let phase = channel.phase;
        let frame = match channel.next_frame(net) {
            Ok(frame) => frame?,
            Err(error) => {
                self.reject(net, connection, error);
                return None;
            }
        };
        if phase == Phase::Open && frame.message.kind().names_pool() {
            self.note_acks(&frame);
            return Some(frame);
        }
        let bytes = net.input(connection)[..frame.frame_bytes].to_vec();
        channel.consume(net, frame.frame_bytes);
        self.note_acks(&frame);
        match (phase, frame.message) {
            (Phase::Greeting, Message::Hello(hello)) => self.on_hello(net, connection, bytes, *hello),
            (Phase::Proving, Message::Proof(proof)) => self.on_proof(net, connection, &proof),
            (Phase::Agreeing, Message::Welcome) => self.open(net, connection),
            (Phase::Proving | Phase::Agreeing | Phase::Open, Message::Refusal(refusal)) => {
                self.on_refusal(net, connection, refusal);
            }
            (Phase::Open, Message::Heartbeat(heartbeat)) => {
                let now = self.now;
                self.channel_mut(connection).expect("seen above").note_heartbeat(heartbeat, now);
            }
            (Phase::Open, Message::PathClosed { path, connection }) => self.give_up(net, path, connection),
            (Phase::Open, Message::Acknowledgement) => {}
            (_, message) => self.lose(net, connection, Loss::Unexpected(message.kind())),
        }
        None
    }

    /// The partner has lost the channels of a path up to `newest`.
    fn give_up<N: Network>(&mut self, net: &mut N, path: u8, newest: u64) {
        // Who has not proved who he is cannot be meant, whatever number he has said.
        let is_meant = |channel: &&Channel| channel.path == path && channel.number <= newest && channel.is_proven();
        while let Some(connection) = self.channels.iter().find(is_meant).map(|channel| channel.connection) {
            self.lose(net, connection, Loss::GivenUp);
        }
        let Some(lost) = self.lost.get_mut(usize::from(path)) else { return };
        if *lost < newest && self.session.is_some() {
            // It was open for the partner alone, and what the partner has sent on it never arrived.
            *lost = newest;
            self.events.push_back(Event::PathDown { path, loss: Loss::GivenUp });
        }
    }

    fn note_acks(&mut self, frame: &Arrived) {
        for ack in &frame.acks {
            self.flows.note_acknowledged(ack);
            self.events.push_back(Event::Acknowledged(*ack));
        }
    }

    /// What has arrived is no frame.
    fn reject<N: Network>(&mut self, net: &mut N, connection: ConnectionId, error: FrameError) {
        let is_open = self.channel(connection).is_some_and(Channel::is_open);
        if !is_open && is_encrypted(net.input(connection)) {
            let text = "the other end encrypts, and this node does not".to_owned();
            self.report_refusal(false, Refusal { reason: RefusalReason::Encryption, text });
        }
        match error {
            FrameError::OtherVersion(_) if !is_open => {
                self.refuse(net, connection, Refusal { reason: RefusalReason::Version, text: error.to_string() });
            }
            FrameError::NotAFrame if !is_open => {
                self.history.stranger_count += 1;
                self.lose(net, connection, Loss::Damaged(error));
            }
            _ => self.lose(net, connection, Loss::Damaged(error)),
        }
    }

    fn on_hello<N: Network>(&mut self, net: &mut N, connection: ConnectionId, bytes: Vec<u8>, hello: Hello) {
        let own_role = self.role;
        let channel = self.channel_mut(connection).expect("a frame of it was taken");
        let agreed = agree::judge(channel.own().expect("we have said hello"), &hello);
        let agreed = match agreed {
            // Somebody has connected to the node that connects.
            Ok(()) if channel.role != own_role => {
                let text = format!("node {} connects, and so does node {}", hello.name, hello.partner);
                Err(Refusal { reason: RefusalReason::Role, text })
            }
            agreed => agreed,
        };
        if let Err(refusal) = agreed {
            return self.refuse(net, connection, refusal);
        }
        let Self { config, channels, scratch, .. } = self;
        let channel = of(channels, connection);
        channel.prove(net, (bytes, hello), &config.key, scratch);
    }

    fn on_proof<N: Network>(&mut self, net: &mut N, connection: ConnectionId, proof: &[u8; 32]) {
        let over = self.is_over_for(connection);
        let Self { config, channels, scratch, .. } = self;
        let channel = of(channels, connection);
        let hello = channel.partner().expect("a proof follows a hello");
        if !channel.proves(&config.key, proof) {
            let text = format!("node {} does not have the same key of the pair as node {}", hello.name, config.name);
            return self.refuse(net, connection, Refusal { reason: RefusalReason::Key, text });
        }
        if over {
            let text = format!("session {} is over", hello.session);
            return self.refuse(net, connection, Refusal { reason: RefusalReason::SessionOver, text });
        }
        channel.welcome(net, scratch);
    }

    /// Both nodes agree: the channel can be used, unless its session has ended meanwhile.
    fn open<N: Network>(&mut self, net: &mut N, connection: ConnectionId) {
        let channel = self.channel(connection).expect("a frame of it was taken");
        let hello = channel.partner().expect("a welcome follows a hello").clone();
        let (path, peer) = (channel.path, (channel.role == Role::Listens).then(|| channel.peer.clone()));
        let session = Session { number: channel.session, partner: hello.incarnation };
        if self.is_over_for(connection) {
            return self.lose(net, connection, Loss::SessionOver);
        }
        if let Some(current) = self.session.filter(|&current| current != session) {
            let is_other_life = current.partner != session.partner;
            self.end_session(net, if is_other_life { Loss::Restarted } else { Loss::SessionOver });
            if self.role == Role::Connects {
                // This channel was made for the session that has just ended; the next one begins a new session.
                return;
            }
        }
        let Self { channels, scratch, now, lost, .. } = self;
        let now = *now;
        let channel = of(channels, connection);
        (channel.phase, channel.heard_at, channel.beat_due) = (Phase::Open, now, now);
        // What was said of these went over channels that may be slow, or lost as well.
        for (path, &connection) in (0..).zip(&*lost).filter(|(_, connection)| **connection > 0) {
            channel.send(net, &Message::PathClosed { path, connection }, scratch);
        }
        let is_replaced = |other: &&Channel| other.is_open() && other.path == path && other.connection != connection;
        if let Some(replaced) = self.channels.iter().find(is_replaced).map(|channel| channel.connection) {
            self.lose(net, replaced, Loss::Replaced);
        }
        if self.session.is_none() {
            self.session = Some(session);
            self.events.push_back(Event::Up(Box::new(hello)));
        }
        self.events.push_back(Event::PathUp { path });
        self.history.note_open(path, peer.as_deref(), now);
        if let Some(dial) = self.dials.iter_mut().find(|dial| dial.connection == Some(connection)) {
            dial.succeed();
        }
    }

    /// A node does not go on with us.
    fn on_refusal<N: Network>(&mut self, net: &mut N, connection: ConnectionId, refusal: Refusal) {
        let channel = self.channel(connection).expect("a frame of it was taken");
        let (session, is_proven) = (channel.session, channel.is_proven());
        if channel.is_open() {
            return self.lose(net, connection, Loss::Refused(refusal));
        }
        self.note_loss(connection, &refusal.text);
        self.remove(net, connection, true);
        match refusal.reason {
            // Who has not proved the key can say so too: then it is one more connection that came to nothing.
            RefusalReason::SessionOver
                if is_proven && session == self.session_number && self.role == Role::Connects =>
            {
                self.retry(connection, false);
                if self.session.is_some() {
                    self.end_session(net, Loss::SessionOver);
                } else {
                    self.session_number += 1;
                }
            }
            RefusalReason::SessionOver | RefusalReason::Stopping => self.retry(connection, false),
            _ => {
                self.retry(connection, true);
                self.report_refusal(true, refusal);
            }
        }
    }

    /// Whether the session of a channel has ended for us.
    fn is_over_for(&self, connection: ConnectionId) -> bool {
        let Some(channel) = self.channel(connection) else { return true };
        if self.role == Role::Connects {
            return channel.session != self.session_number;
        }
        let partner = channel.partner().map(|hello| hello.incarnation);
        let of_this_life = |session: &Session| Some(session.partner) == partner;
        let ended = self.ended.filter(of_this_life).is_some_and(|ended| channel.session <= ended.number);
        ended || self.session.filter(of_this_life).is_some_and(|current| channel.session < current.number)
    }

    /// We do not go on with a node: it is told why, and so is everybody here.
    fn refuse<N: Network>(&mut self, net: &mut N, connection: ConnectionId, refusal: Refusal) {
        let Self { channels, scratch, .. } = self;
        let channel = of(channels, connection);
        channel.send(net, &Message::Refusal(refusal.clone()), scratch);
        self.note_loss(connection, &refusal.text);
        self.remove(net, connection, false);
        self.retry(connection, true);
        if refusal.reason != RefusalReason::SessionOver {
            self.report_refusal(false, refusal);
        }
    }

    /// Remembers why a path was lost; what happens to strangers says nothing of a path.
    fn note_loss(&mut self, connection: ConnectionId, text: &str) {
        let Some(channel) = self.channels.iter().find(|channel| channel.connection == connection) else { return };
        if channel.role == Role::Connects || channel.is_proven() {
            self.history.note_loss(channel.path, channel.is_open(), text, self.now);
        }
    }

    /// Two nodes do not go on with each other. While a session is up it is a stranger who is refused, or refuses.
    fn report_refusal(&mut self, by_partner: bool, refusal: Refusal) {
        self.history.refused_count += 1;
        let rest = self.config.timing.retry[1];
        if self.session.is_none() && self.history.note_refusal(by_partner, &refusal, self.now, rest) {
            self.events.push_back(Event::Refused { by_partner, refusal });
        }
    }

    /// A connection is of no use any more.
    pub(super) fn lose<N: Network>(&mut self, net: &mut N, connection: ConnectionId, loss: Loss) {
        let channel = self.channel(connection).expect("the caller has it");
        let (path, number, was_open) = (channel.path, channel.number, channel.is_open());
        self.note_loss(connection, &loss.to_string());
        self.remove(net, connection, true);
        self.retry(connection, false);
        if !was_open {
            return;
        }
        self.events.push_back(Event::PathDown { path, loss: loss.clone() });
        self.flows.forget_channel(number);
        self.acks.repeat();
        let newest = &mut self.lost[usize::from(path)];
        *newest = number.max(*newest);
        let Self { channels, scratch, .. } = self;
        let mut is_left = false;
        for channel in channels.iter_mut().filter(|channel| channel.is_open()) {
            channel.send(net, &Message::PathClosed { path, connection: number }, scratch);
            is_left = true;
        }
        if !is_left {
            self.close_session(net, loss);
        }
    }

    /// Loses every open channel, and with the last one the session.
    fn end_session<N: Network>(&mut self, net: &mut N, loss: Loss) {
        while let Some(open) = self.channels.iter().find(|channel| channel.is_open()) {
            let connection = open.connection;
            self.lose(net, connection, loss.clone());
        }
    }

    /// The last open channel of the session is gone.
    fn close_session<N: Network>(&mut self, net: &mut N, loss: Loss) {
        self.ended = self.session.take();
        self.flows.clear();
        self.acks.clear();
        self.lost = [0; PATHS_MAX];
        self.events.push_back(Event::Down { loss });
        if self.role == Role::Listens {
            return;
        }
        self.session_number += 1;
        // Those that have named the old session in their hello are of no use.
        let is_old = |channel: &&Channel| channel.role == Role::Connects && channel.phase > Phase::Connecting;
        let old: Vec<ConnectionId> = self.channels.iter().filter(is_old).map(|channel| channel.connection).collect();
        for connection in old {
            self.lose(net, connection, Loss::SessionOver);
        }
    }

    /// Says farewell on every channel.
    pub(super) fn leave<N: Network>(&mut self, net: &mut N) {
        let text = format!("node {} stops", self.config.name);
        let farewell = Message::Refusal(Refusal { reason: RefusalReason::Stopping, text });
        let was_up = self.session.is_some();
        for mut channel in std::mem::take(&mut self.channels) {
            if channel.is_open() {
                channel.send(net, &farewell, &mut self.scratch);
                self.events.push_back(Event::PathDown { path: channel.path, loss: Loss::Stopping });
            }
            net.close(channel.connection, !channel.is_open());
        }
        self.dials.clear();
        if was_up {
            self.close_session(net, Loss::Stopping);
        }
    }

    fn remove<N: Network>(&mut self, net: &mut N, connection: ConnectionId, abort: bool) {
        self.activity += 1;
        self.channels.retain(|channel| channel.connection != connection);
        if self.delivered.is_some_and(|delivered| delivered.connection == connection) {
            self.delivered = None;
        }
        net.close(connection, abort);
    }

    /// Has the path of a connection that is gone rest.
    fn retry(&mut self, connection: ConnectionId, is_refused: bool) {
        let Self { dials, prng, now, .. } = self;
        if let Some(dial) = dials.iter_mut().find(|dial| dial.connection == Some(connection)) {
            if is_refused { dial.refuse(*now, prng) } else { dial.fail(*now, prng) }
        }
    }
}

/// The channel of a connection that the caller has looked up.
fn of(channels: &mut [Channel], connection: ConnectionId) -> &mut Channel {
    channels.iter_mut().find(|channel| channel.connection == connection).expect("it is there")
}

/// Whether bytes are a handshake or an alert of TLS (RFC 8446, section 5.1).
fn is_encrypted(bytes: &[u8]) -> bool {
    matches!(bytes, [21 | 22, 3, ..])
}
