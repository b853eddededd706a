//! What the driver itself costs: instructions of submission and completion, counted by callgrind, without the controller.
//!
//! ```text
//! cargo build --release -p twinlog-nvme --example instructions
//! valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*measured*' --callgrind-out-file=out \
//!     target/release/examples/instructions read 32 10000
//! callgrind_annotate --inclusive=yes out
//! ```
//!
//! Counted is what happens inside the functions called `measured_*`: queueing one operation, and polling. The model's doorbell is called from there,
//! too, as `ModelRegisters::write_u32`: its inclusive count is to be subtracted. The total divided by the number of operations is the figure.

use std::{cell::Cell, rc::Rc};
use twinlog_device::{BlockBuf, BlockCompletion, BlockDevice, BlockPool, Nanos, Persistence, SharedBlock, Token};
use twinlog_nvme::{
    Controller, ControllerOptions, ControllerState, NvmeDisk,
    model::{Model, ModelConfig, ModelFunction},
};

type Disk = NvmeDisk<ModelFunction, Rc<Cell<Nanos>>>;

#[inline(never)]
fn measured_read(disk: &mut Disk, first: u64, blocks: Vec<BlockBuf>) {
    disk.read(Token(first), first, blocks);
}

#[inline(never)]
fn measured_write(disk: &mut Disk, first: u64, blocks: Vec<SharedBlock>) {
    disk.write(Token(first), first, blocks, Persistence::Volatile);
}

#[inline(never)]
fn measured_poll(disk: &mut Disk, completions: &mut Vec<BlockCompletion>) {
    disk.poll(completions);
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "read or write, operations of a batch, operations";
    let reads = arguments.next().ok_or(usage)? == "read";
    let batch: usize = arguments.next().ok_or(usage)?.parse()?;
    let count: usize = arguments.next().ok_or(usage)?.parse()?;

    let pool = BlockPool::new(256)?;
    let time = Rc::new(Cell::new(Nanos(1)));
    let model = Model::new(ModelConfig { delay_max: 0, ..ModelConfig::new(1) });
    let controller = Controller::start(model.function(), &[&pool], ControllerOptions::default(), time.get())?;
    while controller.poll(time.get()) != ControllerState::Live {
        model.turn();
    }
    let mut disk = controller.open(1, time)?;
    let mut buffers = pool.allocate_many(batch).ok_or("too large a batch")?;
    let source = pool.allocate_zeroed().ok_or("too large a batch")?.freeze();
    let mut completions = Vec::with_capacity(batch);
    for _ in 0..count / batch {
        for index in 0..batch as u64 {
            match buffers.pop().filter(|_| reads) {
                Some(buffer) => measured_read(&mut disk, index, vec![buffer]),
                None => measured_write(&mut disk, index, vec![source.clone()]),
            }
        }
        measured_poll(&mut disk, &mut completions);
        model.turn();
        measured_poll(&mut disk, &mut completions);
        assert_eq!(completions.len(), batch, "the model answers at once");
        buffers.extend(completions.drain(..).flat_map(|completion| completion.blocks));
    }
    println!("{} operations", count / batch * batch);
    Ok(())
}
