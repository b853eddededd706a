//! What a host is answered: replies of the engine, data, statuses.

use super::{Active, Job, Role, Session, Sink};
use crate::{
    node::request::{ReplyData, VolumeError, VolumeService},
    serve::{
        nvme_tcp::{
            io::Work,
            wire::{
                command::{Command, Completion, Status},
                pdu::{self, Part},
                reservation,
            },
        },
        turn::{Next, Turn, each_run, runs_bytes, send_runs},
    },
};
use sha2::{Digest as _, Sha256};
use twinlog_device::Unread;
use zerocopy::{
    IntoBytes,
    little_endian::{U16, U64},
};

/// SQHD without flow control (base 2.0, section 6.3).
const NO_HEAD: u16 = 0xffff;

impl Session {
    /// Takes the engine's reply to a request of this session.
    pub(in crate::serve) fn deliver<N: Unread, S: VolumeService>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        tag: u64,
        result: Result<ReplyData, VolumeError>,
    ) -> Next {
        let slot = u16::try_from(tag >> 32).expect("made by submit_next");
        self.read_bytes -= tag & u64::from(u32::MAX);
        let active = self.commands.get_mut(slot);
        let id = active.command.id.get();
        let Job::Volume(request) = &active.job else { unreachable!("nothing else asks a volume") };
        match result {
            // Whether it was performed only asking again can tell: to the host it is as if the node had died.
            Err(VolumeError::Interrupted(_)) => return Next::Abort,
            Err(VolumeError::Late(pass)) => {
                let volume = request.volume;
                self.refused(turn, slot, (volume, pass));
            }
            Err(error) => self.finish_failed(turn, slot, &error),
            Ok(_) if request.has_steps() => self.to_submit.push_back(slot),
            Ok(ReplyData::Data(runs)) if request.work == Work::Compare => {
                let Sink::Compared(expected) = std::mem::replace(&mut active.sink, Sink::Nowhere) else {
                    unreachable!("its data has come")
                };
                let mut read = Sha256::new();
                each_run(&runs, |bytes| read.update(bytes));
                let is_equal = read.finalize() == expected.finalize();
                let status = if is_equal { Status::SUCCESS } else { Status::COMPARE_FAILURE };
                self.finish(turn, slot, status, 0);
            }
            Ok(ReplyData::Data(runs)) => {
                let length = u32::try_from(runs_bytes(&runs)).expect("at most a transfer");
                assert_eq!(
                    u64::from(length),
                    request.range.end - request.range.start,
                    "a read returns what was asked for"
                );
                self.tally.performed(request);
                self.write_bytes -= active.held_bytes;
                self.commands.discard(slot);
                self.send_data_header(turn, id, length);
                send_runs(turn.net, turn.connection, &runs);
                let mut digest = 0;
                if self.agreement.unwrap_or_default().data_digest {
                    each_run(&runs, |bytes| digest = pdu::digest(digest, bytes));
                }
                self.end_data(turn, id, digest);
            }
            Ok(ReplyData::Reservation(state)) => match request.work {
                Work::Report(bytes) => {
                    let mut page = reservation::report(&state);
                    page.resize(bytes as usize, 0);
                    self.remove(slot);
                    self.send_block(turn, id, &page);
                }
                _ => self.finish(turn, slot, Status::SUCCESS, u64::from(state.persists)),
            },
            Ok(_) => self.finish_done(turn, slot),
        }
        Next::Again
    }

    /// Answers a command with data that is no volume's.
    pub(super) fn send_block<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, id: u16, block: &[u8]) {
        self.send_data_header(turn, id, u32::try_from(block.len()).expect("at most a transfer"));
        turn.net.send(turn.connection, block);
        self.end_data(turn, id, pdu::digest(0, block));
    }

    pub(super) fn send_data_header<N: Unread, S>(&self, turn: &mut Turn<'_, N, S>, command: u16, length: u32) {
        let agreement = self.agreement.unwrap_or_default();
        let part = Part { command, offset: 0, length };
        turn.send(|output| pdu::write_data_header(output, agreement, part, !self.has_flow_control));
    }

    /// What follows data that was sent: its digest, and a response unless the data's unit has said that all is well.
    pub(super) fn end_data<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, id: u16, digest: u32) {
        if self.agreement.unwrap_or_default().data_digest {
            turn.net.send(turn.connection, &digest.to_le_bytes());
        }
        if self.has_flow_control {
            self.respond(turn, id, Status::SUCCESS, 0);
        }
    }

    /// Ends the command in `slot`.
    pub(super) fn finish<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, slot: u16, status: Status, result: u64) {
        let active = self.remove(slot);
        if let Job::Volume(request) = &active.job
            && status.is_success()
        {
            self.tally.performed(request);
        }
        self.answer(turn, &active.command, status, result);
        self.end_half(turn, (slot, active.half), status);
    }

    /// Answers a command, and remembers how it went.
    pub(super) fn answer<N: Unread, S>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        command: &Command,
        status: Status,
        result: u64,
    ) {
        match &self.role {
            Role::Io(member) if status.is_logged() => {
                self.tally.failed(status);
                self.target.controllers.report(*member, command, status);
            }
            Role::Admin(admin) if status.is_logged() => admin.report(&self.target, command, status),
            _ => {}
        }
        self.respond(turn, command.id.get(), status, result);
    }

    fn remove(&mut self, slot: u16) -> Active {
        let active = self.commands.remove(slot);
        self.write_bytes -= active.held_bytes;
        active
    }

    pub(super) fn respond<N: Unread, S>(&self, turn: &mut Turn<'_, N, S>, id: u16, status: Status, result: u64) {
        let queue = match self.role {
            Role::Io(member) => member.queue,
            Role::Admin(_) | Role::Unconnected => 0,
        };
        let completion = Completion {
            result: U64::new(result),
            head: U16::new(if self.has_flow_control { self.head } else { NO_HEAD }),
            queue: U16::new(queue),
            id: U16::new(id),
            status: U16::new(status.field()),
        };
        let agreement = self.agreement.unwrap_or_default();
        let bytes: [u8; 16] = completion.as_bytes().try_into().expect("an entry has 16 bytes");
        turn.send(|output| pdu::write_response(output, agreement, &bytes));
    }
}
