//! Room for a model that comes: where as many are in memory as may be, or what is free does not do, those that nobody has
//! used for longest become idle, as few as will do. Where that would not do either, all stay.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::{Shared, table::Table};
use crate::{
    config::{MachineFacts, anonymous_bytes},
    error::Result,
};

impl Shared {
    /// The machine as a model called `name` finds it; `fits` says whether it would do. Waits until those that make room have
    /// given their memory back: for threads that may block.
    ///
    /// # Errors
    /// `ResourceExhausted` where one had to make room, and all that could are used again.
    pub(super) fn make_room(
        self: &Arc<Self>,
        name: &str,
        fits: &dyn Fn(&MachineFacts) -> bool,
    ) -> Result<MachineFacts> {
        let going = {
            let mut table = self.table();
            let machine = self.machine_beside(&table);
            let (evictable, least) = (table.evictable(name), usize::from(table.is_full(None)));
            if least > evictable.len() {
                return Err(table.full(None));
            }
            let given = |number: usize| evictable[..number].iter().map(|&at| table.memory_bytes(at)).sum();
            match (least..=evictable.len()).find(|&number| fits(&machine.with(given(number)))) {
                // Who asks says what is missing.
                None | Some(0) => return Ok(machine),
                Some(number) => self.rest(&mut table, &evictable[..number]),
            }
        };
        self.changed();
        for mut gone in going {
            // An error means that it has gone.
            let _gone = Handle::current().block_on(gone.wait_for(|gone| *gone));
        }
        Ok(self.machine_beside(&self.table()))
    }

    /// What memory there is beside what the models in memory were promised.
    fn machine_beside(&self, table: &Table) -> MachineFacts {
        (self.machine)().beside(table.promised_bytes(), anonymous_bytes().unwrap_or(0))
    }
}
