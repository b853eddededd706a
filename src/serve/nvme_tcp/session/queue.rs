//! A connection becomes a queue; what the admin queue's commands do, and an I/O queue does for them.

use super::{Role, Session};
use crate::{
    base::{HostId, checksum},
    node::request::VolumeService,
    serve::{
        nvme_tcp::{
            admin::{Abort, Admin, Answer, ENTRIES_MAX, check_room},
            controllers::{QUEUES_MAX, Refused},
            target::DISCOVERY,
            wire::command::{Command, Connect, ConnectFault, Status, opcode},
        },
        turn::Turn,
    },
};
use twinlog_device::Unread;

/// Attribute of a Connect: the host does without flow control of its submission queue.
const NO_FLOW_CONTROL: u8 = 1 << 2;

impl Session {
    /// Makes the connection a queue. Returns the controller.
    pub(super) fn connect(&mut self, connect: &Connect) -> Result<u16, ConnectFault> {
        if connect.size == 0 || connect.size >= ENTRIES_MAX {
            return Err(ConnectFault::command(44));
        }
        let admitted = self.target.admit(&connect.host);
        let entry = admitted.ok_or(ConnectFault { status: Status::CONNECT_HOST, place: 1 << 16 | 512 })?;
        let is_discovery = connect.subsystem == DISCOVERY;
        if !is_discovery && connect.subsystem != self.target.subsystem() {
            return Err(ConnectFault::data(256));
        }
        let id = HostId::new(connect.host_id).filter(|_| !is_discovery);
        if id.is_some_and(|id| !self.target.hosts.may_have(&connect.host, id)) {
            return Err(ConnectFault { status: Status::CONNECT_HOST, place: 1 << 16 });
        }
        let host = checksum(u64::from(is_discovery), &[connect.host.as_bytes(), &connect.host_id].concat());
        let busy = ConnectFault { status: Status::CONNECT_BUSY, place: 0 };
        let controller = match connect.queue {
            0 if connect.controller != u16::MAX => return Err(ConnectFault::data(16)),
            0 => {
                let claim = self.target.controllers.claim(&connect.host, host, is_discovery).ok_or(busy)?;
                if let Some(id) = id {
                    self.target.controllers.name_host(&claim, id);
                }
                let admin = Admin::new(claim, connect, is_discovery, self.access, self.now);
                let controller = admin.controller();
                admin.tell_heard(&self.target);
                self.role = Role::Admin(Box::new(admin));
                controller
            }
            queue if is_discovery || queue > QUEUES_MAX => return Err(ConnectFault::command(42)),
            queue => {
                let member =
                    self.target.controllers.join(connect.controller, host, queue).map_err(|refused| match refused {
                        Refused::Unknown => ConnectFault::data(16),
                        Refused::Foreign => ConnectFault { status: Status::CONNECT_HOST, place: 1 << 16 | 512 },
                        Refused::Disabled => ConnectFault { status: Status::SEQUENCE_ERROR, place: 0 },
                        Refused::Taken => ConnectFault::command(42),
                    })?;
                self.role = Role::Io(member);
                connect.controller
            }
        };
        self.host_id = id;
        self.entries = connect.size + 1;
        self.head = 1;
        self.has_flow_control = connect.attributes & NO_FLOW_CONTROL == 0;
        self.welcome(&connect.host, entry, is_discovery);
        Ok(controller)
    }

    /// Performs a command of the admin queue.
    pub(super) fn perform<N: Unread, S: VolumeService>(&mut self, turn: &mut Turn<'_, N, S>, command: &Command) {
        let Role::Admin(admin) = &mut self.role else { unreachable!("planned as one") };
        let id = command.id.get();
        if command.opcode == opcode::ABORT && admin.is_enabled() {
            let abort = admin.abort(&self.target, command, self.now);
            admin.tell_heard(&self.target);
            match abort {
                Abort::Event(request) => {
                    self.respond(turn, request, Status::ABORTED, 0);
                    self.end_abort(turn, id, true);
                }
                Abort::TooLate => self.end_abort(turn, id, false),
                Abort::Waits => {}
                Abort::TooMany => self.answer(turn, command, Status::TOO_MANY_ABORTS, 0),
            }
            return;
        }
        let answer = admin.execute(&self.target, turn.service, command, self.now);
        admin.tell_heard(&self.target);
        match answer {
            Answer::Done(status, result) => self.answer(turn, command, status, result),
            Answer::Held => {}
            Answer::Data(data) => match check_room(command, data.len()) {
                Ok(()) => self.send_block(turn, id, &data),
                Err(status) => self.answer(turn, command, status, 0),
            },
        }
        self.tell(turn);
    }

    /// Answers an Abort: bit 0 says that the command was not aborted.
    pub(super) fn end_abort<N: Unread, S>(&self, turn: &mut Turn<'_, N, S>, id: u16, is_aborted: bool) {
        self.respond(turn, id, Status::SUCCESS, u64::from(!is_aborted));
    }

    /// Gives up the command that the host wants aborted, unless a volume has it or the host is about to send its data.
    pub(super) fn heed_abort<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>) {
        let Role::Io(member) = self.role else { return };
        let Some(id) = self.target.controllers.wanted_abort(member) else { return };
        let is_it = |slot: &u16| self.commands.get(*slot).is_some_and(|active| active.command.id.get() == id);
        let slot = self.abortable().find(is_it);
        if let Some(slot) = slot {
            self.to_submit.retain(|waiting| *waiting != slot);
            self.to_receive.retain(|waiting| *waiting != slot);
            self.finish(turn, slot, Status::ABORTED, 0);
        }
        self.target.controllers.end_abort(member, id, slot.is_some());
    }
}
