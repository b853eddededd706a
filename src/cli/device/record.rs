//! What the kernel said of a controller before it was bound away: afterwards nothing in `/sys` tells its serial.
//!
//! One file per controller in `/run/twinlog/devices`, so it ends with the boot, as the binding does. It is believed only while the PCI
//! ids at that address are the same; it is a memory, not a proof: the driver asks the device itself for its serial when it opens it.

use super::{controller::Controller, machine::Machine};
use serde::{Deserialize, Serialize};
use std::{fs, io};

const DIRECTORY: &str = "run/twinlog/devices";

#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Record {
    ids: String,
    pub(crate) model: String,
    pub(crate) serial: String,
}

impl Record {
    pub(crate) fn of(controller: &Controller) -> Self {
        let Controller { ids, model, serial, .. } = controller.clone();
        Self { ids, model, serial }
    }

    /// What is remembered of the controller at this address.
    pub(crate) fn read(machine: &Machine, controller: &Controller) -> Option<Self> {
        let record: Self = serde_json::from_str(&machine.text(&place(controller))?).ok()?;
        (record.ids == controller.ids && !record.serial.is_empty()).then_some(record)
    }

    /// Remembers, all or nothing.
    pub(crate) fn write(&self, machine: &Machine, controller: &Controller) -> io::Result<()> {
        fs::create_dir_all(machine.path(DIRECTORY))?;
        let (path, new) = (machine.path(&place(controller)), machine.path(&format!("{}.new", place(controller))));
        fs::write(&new, serde_json::to_string(self)? + "\n")?;
        fs::rename(new, path)
    }

    /// Forgets.
    pub(crate) fn remove(machine: &Machine, controller: &Controller) -> io::Result<()> {
        match fs::remove_file(machine.path(&place(controller))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn place(controller: &Controller) -> String {
    format!("{DIRECTORY}/{}.json", controller.address)
}
